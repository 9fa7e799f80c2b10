"""Asking the driver, against a library with its names and its C signatures."""

import shutil
import subprocess

import pytest

from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu.driver import LIBRARY, Driver, GpuFacts, find_driver

# After cuda.h; `init` and `count` are the test's.
SOURCE = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 40; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    if (length < 16) return 1;
    strcpy(name, device == 40 ? "Card A" : "Card B");
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)140 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (attribute == 75) *value = 9; else if (attribute == 76) *value = device - 40; else return 1;
    return 0;
}
"""


@pytest.fixture
def library(tmp_path):
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc: the stand-in driver cannot be compiled")
    source = tmp_path / "driver.c"
    source.write_text(SOURCE)

    def build(init=0, count=2):
        path = tmp_path / f"libcuda-{init}-{count}.so"
        defines = [f"-DINIT={init}", f"-DCOUNT={count}"]
        command = [compiler, "-shared", "-fPIC", *defines, str(source), "-o", str(path)]
        subprocess.run(command, check=True)
        return str(path)

    return build


def test_the_driver_tells_its_cuda_and_its_gpus(library):
    memory = 140 << 30
    assert find_driver(library()) == Driver(
        "13.1", (GpuFacts("Card A", "9.0", memory), GpuFacts("Card B", "9.1", memory))
    )


def test_a_driver_that_shows_no_gpu_is_said(library):
    with pytest.raises(DeviceError, match="CUDA_VISIBLE_DEVICES"):
        find_driver(library(count=0))


@pytest.mark.parametrize(("status", "words"), [(100, "no GPU"), (803, "reboot"), (77, "CUresult")])
def test_what_keeps_the_driver_from_starting_is_said(library, status, words):
    with pytest.raises(DeviceError, match=f"CUDA error {status}.*{words}"):
        find_driver(library(init=status))


def test_no_driver_is_one_line_that_says_what_to_do():
    with pytest.raises(DeviceError, match="install the driver") as caught:
        find_driver(f"no-such-{LIBRARY}")
    assert "\n" not in str(caught.value)
