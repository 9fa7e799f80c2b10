"""The TensorRT code against the published type stubs: names, arguments and results of each call."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="needs the extra 'dev'")

SOURCE = Path(__file__).resolve().parents[4] / "src"
MODULES = sorted((SOURCE / "vitcx" / "runtime" / "engines" / "tensorrt").glob("*.py"))

# What makes the stubs of 10.13 unreadable: a keyword as a name, a default before none, a variable
# that hides the type of the same name. And sizes are sequences, without saying so.
REPAIRS = (
    (r"\bin: list", "in_: list"),
    (r"channel_axis: int\)", "channel_axis: int = ...)"),
    (r"(?m)^bool: .*$", ""),
    (r"(?m)^class Dims:$", "class Dims:\n    def __iter__(self) -> typing.Iterator[int]: ..."),
)
CONFIGURATION = """
[mypy]
strict = True
warn_return_any = False
namespace_packages = False
mypy_path = {source}{separator}{stubs}
[mypy-tensorrt.*,tensorrt_bindings.*]
ignore_errors = True
[mypy-cuda.*,filelock.*,onnxruntime.*]
ignore_missing_imports = True
"""


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mypy's, with the stubs where it reads them: installed beside a package it does not."""
    try:
        files = importlib.metadata.files("tensorrt-stubs") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no type stubs: run  pip install --no-deps tensorrt-stubs")
    (stub,) = [f for f in files if f.as_posix() == "tensorrt_bindings/tensorrt.pyi"]
    text = Path(str(stub.locate())).read_text(encoding="utf-8")
    for pattern, replacement in REPAIRS:
        text = re.sub(pattern, replacement, text)
    folder = tmp_path_factory.mktemp("stubs")
    for package, content in (
        ("tensorrt_bindings", ""),
        ("tensorrt", "from tensorrt_bindings.tensorrt import *\n"),
    ):
        (folder / package).mkdir()
        (folder / package / "__init__.pyi").write_text(content)
    (folder / "tensorrt_bindings" / "tensorrt.pyi").write_text(text, encoding="utf-8")
    path = folder / "mypy.ini"
    path.write_text(CONFIGURATION.format(source=SOURCE, separator=os.pathsep, stubs=folder))
    return path


@pytest.mark.slow
def test_every_call_has_the_types_of_the_stubs(configuration: Path, tmp_path: Path) -> None:
    # That the check can fail is shown in the same run, which takes its time.
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt as trt\n"
        "def f(config: trt.IBuilderConfig) -> None:\n"
        "    config.set_flag(trt.BuilderFlag.TF33)\n"
        "    config.set_memory_pool_limits(1)\n"
        "    config.builder_optimization_level = 'high'\n"
    )
    assert len(MODULES) >= 4
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(configuration),
         "--cache-dir", str(SOURCE.parent / ".mypy_cache" / "stubs"),
         *map(str, MODULES), str(wrong)],
        capture_output=True,
        text=True,
    )  # fmt: skip
    errors = re.findall(r"^(.*?):(\d+): error", result.stdout, re.MULTILINE)
    found = [(Path(file).name, int(line)) for file, line in errors]
    assert found == [("wrong.py", 3), ("wrong.py", 4), ("wrong.py", 5)], result.stdout
