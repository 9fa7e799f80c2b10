"""Timing that can be compared: interleaved, every sample kept, beside the machine's own rate."""

from __future__ import annotations

import datetime
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.cores import available_cores
from vitcx.runtime.explainer import Explainer

FloatArray = NDArray[np.float32]
_SIDE = 1024
# Threads of some engines spin for a while after a call, and would be charged to the next one.
PAUSE_SECONDS = 0.05


def matrix_rate(seconds: float = 0.5) -> float:
    """Float32 operations per second of NumPy's matrix product, the best of `seconds` of tries.

    Two operations for each multiply-add. What a forward pass reaches of it says how much a better
    engine could still gain.
    """
    a = np.random.default_rng(0).random((_SIDE, _SIDE), dtype=np.float32)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        _ = a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best


def peak_memory() -> int | None:
    """The most bytes this process has ever held; it never falls. None where nothing tells it."""
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` tells what a parent held before its child's program began
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def interleave(
    contenders: Mapping[str, Callable[[int], Any]],
    items: int,
    rounds: int,
    done: Callable[[str], None] = lambda name: None,
    *,
    pause: float = PAUSE_SECONDS,
) -> dict[str, list[float]]:
    """Seconds of every call ``contender(item)``, by contender.

    In each round every contender runs every item, the contenders taking turns at each item, so that
    a machine that slows down slows all of them. Call each once before, to warm it.

    Parameters
    ----------
    done : called with a contender's name after each of its calls.
    pause : seconds between two calls.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for turn in range(rounds):
        for item in range(items):
            shift = (turn * items + item) % len(order)
            for name in order[shift:] + order[:shift]:
                time.sleep(pause)
                start = time.perf_counter()
                contenders[name](item)
                samples[name].append(time.perf_counter() - start)
                done(name)
    return samples


# What the speed of a forward pass depends on most.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe_machine() -> dict[str, Any]:
    """The processor as the system tells it, and the cores this process may use.

    Hypervisors give processors of several generations one name: hence family, model, and those of
    `INSTRUCTIONS` that it has.
    """
    told: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            told.setdefault(key.strip(), value.strip())
    flags = told.get("flags", "").split()
    return {
        "processor": told.get("model name") or platform.processor() or platform.machine(),
        "family_and_model": f"{told.get('cpu family', '?')}, {told.get('model', '?')}",
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": available_cores(),
        "system": platform.platform(),
    }


def describe_run(packages: Sequence[str]) -> dict[str, Any]:
    """What a result is recorded with: date, machine, versions, and the command, paths by name.

    A package that is not installed is said to be so: a run may not need all of them.
    """
    words = [Path(word).name or word for word in sys.argv]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *words]),
        "machine": describe_machine(),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in packages},
        },
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def ratios(reference: Sequence[float], samples: Sequence[float]) -> dict[str, float]:
    """How many times faster than the reference, call by call: median and quartiles.

    Both lists are of one `interleave`, so that the two of a pair ran within seconds of each other.
    """
    quarters = np.quantile(np.divide(reference, samples), [0.25, 0.5, 0.75])
    return dict(zip(("q25", "median", "q75"), map(float, quarters), strict=True))


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, 99th percentile and all samples, in seconds."""
    return {
        "p50": statistics.median(samples),
        "p99": float(np.quantile(samples, 0.99)),
        "samples": [round(s, 5) for s in samples],
    }


def stages(
    explainer: Explainer, image: FloatArray, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Seconds by stage of an explanation, and ``outside``: the share not in forward passes."""
    timings = dict(explainer.explain(image, **settings).timings)
    forward = timings.get("encode", 0.0) + timings.get("score", 0.0)
    total = timings.get("total", sum(timings.values()))
    return {**timings, "outside": 1 - forward / total if total else 0.0}


def packed_rate(
    explainer: Explainer, images: Sequence[FloatArray], settings: Mapping[str, Any]
) -> float:
    """Explanations per second when the pictures share batches."""
    start = time.perf_counter()
    count = sum(1 for _ in explainer.explain_many(images, **settings))
    return count / (time.perf_counter() - start)
