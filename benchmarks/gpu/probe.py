"""What a GPU machine has, and its two ceilings: how fast it copies, and how fast it multiplies.

    python -m benchmarks.gpu.probe

Needs neither the package nor anything that it depends on; the ceilings need torch.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.report import Report, default_path

ROOT = Path(__file__).resolve().parents[2]
MATRIX_SIDE = 8192
COPIED_BYTES = 1 << 30
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "g++", "cmake")


def run(command: list[str], seconds: float, **options: Any) -> dict[str, Any]:
    """Exit status and the end of the output of a command, under a time limit."""
    if shutil.which(command[0]) is None:
        return {"status": None, "tail": f"no {command[0]} on this machine"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, check=False,
            **options,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"status": None, "tail": f"stopped after {seconds:.0f} s"}
    return {"status": done.returncode, "tail": (done.stdout + done.stderr).strip()[-600:]}


def machine() -> dict[str, Any]:
    """GPU, driver, tools and every installed package."""
    query = "name,driver_version,memory.total,compute_cap,clocks.max.sm,power.limit"
    packages = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], 30)["tail"],
        "python": platform.python_version(),
        "system": platform.platform(),
        "tools": {name: shutil.which(name) for name in TOOLS},
        "nvcc": run(["nvcc", "--version"], 30)["tail"].splitlines()[-1:],
        "packages": dict(sorted(packages.items(), key=lambda item: str(item[0]).lower())),
    }


def tensorrt() -> dict[str, Any]:
    """Whether a TensorRT is there: as a module, or as libraries somewhere."""
    elsewhere = ["-path", "/proc", "-prune", "-o", "-path", "/sys", "-prune", "-o"]
    found = run(["find", "/", *elsewhere, "-name", "libnvinfer*", "-print"], 60)["tail"]
    return {
        # In a process of its own: a library that does not fit the driver may end it.
        "modules": {
            name: run([sys.executable, "-c", f"import {name} as t; print(t.__version__)"], 60)[
                "tail"
            ].splitlines()[-1:]
            for name in ("tensorrt", "tensorrt_rtx")
        },
        "libraries": [line for line in found.splitlines() if line.startswith("/")],
    }


def copy_rate() -> float:
    """GB/s, reading and writing counted, of a copy from device memory to device memory."""
    import torch

    a, b = (torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * COPIED_BYTES / _seconds(torch, lambda: b.copy_(a)) / 1e9


def matrix_rates() -> dict[str, float]:
    """TFLOP/s of square products of random values, by element type."""
    import torch

    rates = {}
    for name in ("float16", "bfloat16", "float32"):
        a, b = (
            torch.randn(MATRIX_SIDE, MATRIX_SIDE, device="cuda", dtype=getattr(torch, name))
            for _ in range(2)
        )
        rates[name] = 2 * MATRIX_SIDE**3 / _seconds(torch, lambda a=a, b=b: a @ b) / 1e12
    return rates


def _seconds(torch: Any, work: Any) -> float:
    """Of one call on the device, the median of ten."""
    spent = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        spent.append(start.elapsed_time(end) / 1000)
    return median(spent[2:])


def run_tests(paths: list[str], seconds: float) -> dict[str, Any]:
    """Tests marked gpu, of this checkout.

    The project's own settings of pytest are left out: they name a plugin.
    """
    options = ["-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", "--import-mode=importlib"]
    options += ["-c", os.devnull, f"--rootdir={ROOT}"]
    package = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    command = [sys.executable, "-m", "pytest", *options, *paths]
    return run(command, seconds, env={**os.environ, "PYTHONPATH": package})


def probe(report: Report) -> None:
    """Every step, into the report."""
    report.step("machine", machine)
    report.step("copy_gb_per_s", copy_rate)
    report.step("matrix_tflop_per_s", matrix_rates)
    report.step("tensorrt", tensorrt)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="default: a file of this run's own in out/gpu")
    report = Report(parser.parse_args().out or default_path("probe"))
    probe(report)
    print(report.text())


if __name__ == "__main__":
    main()
