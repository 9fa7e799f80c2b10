"""Runs tests on an emulated CUDA driver (emulator/), beneath the real `cuda.core`.

A process that has loaded a driver keeps it, and other tests want none: so the tests run in one of
their own. `queue`, `is_capturing` and the rest are for the tests in that process.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.conftest import CUDA_SOURCES

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent
# The kernels' flags are those of the host build: its values are the ones that are compared.
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
FLAGS += ["-ffp-contract=off", "-fvisibility=hidden", "-fno-gnu-unique", "-fPIC", "-shared"]
FLAGS += ["-pthread", f"-I{CUDA_SOURCES}", "-Wl,-Bsymbolic"]


def build(directory: Path) -> Path:
    """The libraries, under the names by which NVIDIA's are looked for; returns `directory`."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the emulated driver is built by g++, on Linux")
    for source, name, flags in (
        ("driver.cpp", "libcuda.so.1", FLAGS),
        ("cublas.cpp", "libcublas.so.13", ["-std=c++17", "-O2", "-fPIC", "-shared"]),
        ("cublas.cpp", "libcublasLt.so.13", ["-std=c++17", "-fPIC", "-shared"]),  # only loaded
    ):
        command = [compiler, *flags, str(SOURCES / source), f"-Wl,-soname,{name}"]
        subprocess.run([*command, "-ldl", "-o", str(directory / name)], check=True)
    return directory


def run_tests(libraries: Path, *arguments: str, delay_us: int = 0, plain: bool = False):
    """Pytest with `arguments` on the emulated driver: ({outcome: count}, what it printed).

    Fails, with what it printed, where a test does.

    Parameters
    ----------
    delay_us : the most that a piece of work on a stream waits before it begins.
    plain : device addresses are the host's, for a stand-in that computes in device memory.
    """
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "VITCX_EMULATOR_DELAY_US": str(delay_us),
        "VITCX_EMULATED": "1",
    }
    if plain:
        environment["VITCX_EMULATOR_PLAIN_ADDRESSES"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-4000:]
    last = ran.stdout.strip().splitlines()[-1]
    return {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", last)}, ran.stdout


# --- in that process ------------------------------------------------------------------------------

_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_kept: list[object] = []  # a recording may run its work for as long as the process lives


def library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def queue(handle, work):
    """As `fake_cuda.queue`: Python's work on the stream at `handle`."""
    callback = _Callback(lambda _: work())
    _kept.append(callback)
    assert library().emulator_queue(ctypes.c_void_p(handle), callback, None) == 0


def is_capturing(handle):
    status = ctypes.c_int()
    assert library().cuStreamIsCapturing(ctypes.c_void_p(handle), ctypes.byref(status)) == 0
    return status.value == 1


def set_memory(size):
    """How many bytes the device has."""
    library().emulator_set_memory(ctypes.c_uint64(size))


def current_device():
    """Of the calling thread; None where it has none."""
    context, index = ctypes.c_void_p(), ctypes.c_int()
    assert library().cuCtxGetCurrent(ctypes.byref(context)) == 0
    if not context.value:
        return None
    assert library().cuCtxGetDevice(ctypes.byref(index)) == 0
    return index.value


def counts():
    """What has not been given back."""
    numbers = (ctypes.c_uint64 * 3)()
    library().emulator_count(numbers)
    return dict(zip(("allocations", "streams", "graphs"), numbers, strict=True))
