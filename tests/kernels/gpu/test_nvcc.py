"""The kernels compile for every supported architecture, without warnings and without spills."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.kernels.conftest import CUDA_SOURCES

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
ENTRIES = {
    "blend": {"vitcx_blend"},
    "masks": {
        "vitcx_normalise",
        "vitcx_gram_apply",
        "vitcx_cosine_distance",
        "vitcx_cluster_masks",
    },
    "linkage": {"vitcx_complete_linkage"},
    "aggregate": {"vitcx_weighted_masks", "vitcx_saliency"},
}
# 64 is what lets four blocks of 256 threads share a multiprocessor's 65,536 registers.
MOST_BLEND_REGISTERS = 64

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def resource_usage(log):
    """{(kernel, architecture): {stack, stores, loads, registers}} from ptxas -v."""
    return {
        (m["name"], m["arch"]): {k: int(m[k]) for k in ("stack", "stores", "loads", "registers")}
        for m in _ENTRY.finditer(log)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_compiles_everywhere(name, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    missing = [a for a in ARCHITECTURES if f"compute_{a}" not in known.stdout.split()]
    if missing:
        pytest.skip(f"this nvcc does not know sm_{', sm_'.join(missing)}")
    command = [nvcc, "-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v"]
    command += ["-Xcompiler", "-Wall,-Wextra", "--threads", "2"]
    for arch in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    command += ["-c", str(CUDA_SOURCES / f"{name}.cu"), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    usage = resource_usage(done.stderr + done.stdout)
    assert set(usage) == {(entry, arch) for entry in ENTRIES[name] for arch in ARCHITECTURES}
    for (entry, arch), used in sorted(usage.items()):  # pytest -s shows them
        print(f"{entry} sm_{arch}: {used['registers']} registers, {used['stores']} bytes spilled")
    for used in usage.values():
        assert used["stores"] == used["loads"] == used["stack"] == 0
        if name == "blend":
            assert used["registers"] <= MOST_BLEND_REGISTERS
