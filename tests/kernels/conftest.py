"""The device logic compiled by g++, for ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

CUDA_SOURCES = Path(__file__).parents[2] / "src" / "vitcx" / "kernels" / "cuda"
# -ffp-contract=off: the code spells out its fused operations, and must not depend on more of them.
HOST_FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
HOST_FLAGS += ["-ffp-contract=off"]


class Shim:
    """Calls into shim.cpp; arrays become pointers, and must be contiguous."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def __call__(self, name: str, *arguments):
        converted = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                assert argument.flags.c_contiguous
                converted.append(ctypes.c_void_p(argument.ctypes.data))
            else:
                converted.append(argument)
        return getattr(self._library, f"shim_{name}")(*converted)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++: the device logic cannot be compiled for the host")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.cpp")
    command = [compiler, *HOST_FLAGS, "-fPIC", "-shared", f"-I{CUDA_SOURCES}", str(source)]
    subprocess.run([*command, "-o", str(library)], check=True)
    return Shim(library)
