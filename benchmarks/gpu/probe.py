"""What a GPU machine has, and its two ceilings: how fast it copies, and how fast it multiplies.

    python -m benchmarks.gpu.probe

The ceilings need torch.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.command import Benchmark, out_option

ROOT = Path(__file__).resolve().parents[2]
MATRIX_SIDE = 8192
COPIED_BYTES = 1 << 30
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "g++", "cmake")


class Report:
    """What was found so far, by step, in a JSON file that is replaced after every step.

    A step that fails is a line in it, and the next one runs: a command that is killed, or a machine
    that is taken away, loses the step that was under way and no more.

    Parameters
    ----------
    path : of the file; None keeps none. Its folder is made.

    Attributes
    ----------
    found : the results so far.
    failed : steps that raised something, or whose command did not end with 0.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.found: dict[str, Any] = {}
        self.failed: list[str] = []

    def put(self, name: str, value: Any) -> None:
        """Keep a result, and write the file anew."""
        self.found[name] = value
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".part")
        unfinished.write_text(self.text(indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.path)

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Do `work` and keep what it gives, or the line of what it raised; that it gives too."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            value = work()
        except Exception as error:  # whatever a library, a driver or a machine can raise
            value = {"error": line_of(error)}
        line = _failure(value)
        if line is not None:
            self.failed.append(name)
            print(f"{name}: {line}", file=sys.stderr, flush=True)
        self.found.setdefault("seconds", {})[name] = round(time.perf_counter() - start, 1)
        self.put(name, value)
        return value

    def text(self, indent: int | None = None) -> str:
        return json.dumps(self.found, indent=indent)


def _failure(value: Any) -> str | None:
    """The line of a result that tells of a failure: an error, or a command's other end than 0."""
    if not isinstance(value, dict):
        return None
    if "error" in value:
        return str(value["error"])
    if value.get("status", 0) != 0:
        last = str(value.get("tail", "")).splitlines()[-1:]
        return f"ended with {value['status']}: {''.join(last)}"
    return None


def line_of(error: BaseException) -> str:
    """An error in one line, with its kind."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def default_path(name: str) -> Path:
    """A file of this run's own, so that no earlier one is replaced."""
    return Path("out") / "gpu" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"


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
    return float(median(spent[2:]))


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


@click.command(cls=Benchmark)
@out_option("JSON file.  [default: a file of this run's own in out/gpu]")
def main(out: Path | None) -> None:
    """Tell what this machine has."""
    report = Report(out or default_path("probe"))
    probe(report)
    click.echo(report.text())


if __name__ == "__main__":
    main()
