"""The project itself: what the wheel holds, and that the README's words run."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel built from this checkout."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=300,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    expected = {
        f"vitcx/{path.relative_to(ROOT / 'src' / 'vitcx').as_posix()}"
        for path in (ROOT / "src" / "vitcx").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    found = {name for name in wheel if name.startswith("vitcx/") and name.endswith(".py")}
    assert found == expected
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vitcx"}


def test_the_wheel_holds_the_model_the_kernels_and_the_types(wheel):
    assert "vitcx/py.typed" in wheel
    bundle = {name: size for name, size in wheel.items() if "/demo/bundle/" in name}
    assert {name.rsplit("/", 1)[1] for name in bundle} == {"manifest.json", "model.onnx"}
    assert sum(bundle.values()) <= 8_000_000
    sources = {
        path.name
        for path in (ROOT / "src" / "vitcx" / "kernels" / "cuda").iterdir()
        if path.is_file()
    }
    assert {name.rsplit("/", 1)[1] for name in wheel if "/kernels/cuda/" in name} == sources


def test_the_top_level_links_point_into_the_package():
    for package in ("export", "runtime", "kernels"):
        assert (ROOT / package).is_symlink()
        assert (ROOT / package).resolve() == ROOT / "src" / "vitcx" / package


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    exec(compile(block, "README.md", "exec"), {"picture": picture})
    assert (tmp_path / "overlay.png").is_file()


def test_the_commands_of_the_readme_exist():
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", make, flags=re.MULTILINE)
    from vitcx.cli import COMMANDS

    for command in re.findall(r"^vitcx (\w+)", README, flags=re.MULTILINE):
        assert command in COMMANDS


def test_what_the_readme_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
