"""What importing and calling export needs, in interpreters that lack some of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vitcx
from vitcx.runtime.errors import MissingExtraError

SOURCE = str(Path(vitcx.__file__).parents[1])


def run(code: str) -> str:
    """Standard output of `code` in an interpreter of its own; its errors fail the test."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {SOURCE!r})\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_export_imports_none_of_the_extra() -> None:
    heavy = run(
        "import vitcx.export, vitcx.commands.export, vitcx.cli\n"
        "vitcx.export.ModelSpec('layer', grid=(1, 1))\n"
        "print([m for m in ('torch', 'timm', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    assert heavy.strip() == "[]"


def test_a_missing_module_is_one_line(tmp_path: Path) -> None:
    """None in `sys.modules` makes an import fail as that of a module that is not installed."""
    said = run(
        "sys.modules['torch'] = None\n"
        "import contextlib, io\n"
        "from vitcx.cli import main\n"
        "error = io.StringIO()\n"
        "with contextlib.redirect_stderr(error):\n"
        f"    code = main(['export', 'deit_tiny_patch16_224', '--out', {str(tmp_path / 'b')!r}])\n"
        "print(code, error.getvalue())"
    )
    assert said.strip() == (
        "2 vitcx: vitcx export needs the module 'torch', which is not installed: "
        "run pip install 'vitcx[export]'"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["torch", "safetensors", "onnx", "onnxscript", "onnxruntime"])
def test_each_module_of_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcx.export.extras import require_export_extra

    require_export_extra()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=f"needs the module '{module}'") as caught:
        require_export_extra()
    assert caught.value.extra == "export"


def test_a_broken_installation_says_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcx.export import extras

    def fail(name: str) -> None:
        raise ModuleNotFoundError("No module named 'numpy.absent'", name="numpy.absent")

    monkeypatch.setattr(extras.importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match=r"numpy\.absent"):
        extras.require_export_extra()


@pytest.mark.slow
def test_timm_is_imported_beside_a_torchvision_without_operators() -> None:
    """Twice gives the same module, and a detector's operator is declared one way or the other."""
    said = run(
        "from vitcx.export.timm_import import import_timm\n"
        "import_timm().create_model\n"
        "import torch, torchvision\n"
        "print(import_timm() is import_timm(), hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert said.strip() == "True True"


def test_another_failure_of_timm_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcx.export import timm_import

    def fail(name: str) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(timm_import.importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="something else"):
        timm_import.import_timm.__wrapped__()
