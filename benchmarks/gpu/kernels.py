"""Everything to prove about the kernels on a GPU, in one command, within ten minutes.

    python benchmarks/gpu/kernels.py

Probe, parity (the tests marked gpu), memcheck and racecheck, and time against the byte floor at
batch 128 x 3 x 224 x 224, each under its own time limit. The last line is JSON. Never ran on
hardware so far: see docs/gpu-notes.md. With --workload it only launches kernels, for
compute-sanitizer to watch.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from statistics import median

import numpy as np

from vitcx.kernels.blend import SKIP, Job
from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu import Gpu
from vitcx.kernels.gpu_kernels import GpuKernels, pack_jobs

ROOT = Path(__file__).parents[2]
BATCH, CHANNELS, SIDE, GRID = 128, 3, 224, 14
REPEATS, LAUNCHES = 20, 50


def probe(gpu: Gpu) -> dict[str, object]:
    """Machine, versions."""
    versions = {}
    for name in ("cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "numpy", "torch", "cupy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    driver = run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], 30)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": gpu.name,
        "arch": gpu.arch,
        "driver": driver["tail"],
        "python": platform.python_version(),
        "versions": versions,
    }


def run(command: list[str], seconds: float) -> dict[str, object]:
    """Exit status and the end of the output of a command, under a time limit."""
    if shutil.which(command[0]) is None:
        return {"status": None, "tail": f"no {command[0]} on this machine"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"status": None, "tail": f"stopped after {seconds:.0f} s"}
    return {"status": done.returncode, "tail": (done.stdout + done.stderr).strip()[-600:]}


def seconds_per_launch(gpu: Gpu, work, stream) -> list[float]:
    """`REPEATS` samples of one launch's seconds on the device, each over `LAUNCHES` of them."""
    work()
    stream.synchronise()
    samples = []
    for _ in range(REPEATS):
        start = stream.record(timed=True)
        for _ in range(LAUNCHES):
            work()
        end = stream.record(timed=True)
        stream.synchronise()
        samples.append((end - start) / 1000 / LAUNCHES)
    return samples


def bandwidth(gpu: Gpu) -> dict[str, object]:
    """Blend time against the time to copy the bytes it must move."""
    from vitcx.kernels.cuda_modules import cuda_module

    core = cuda_module()
    results: dict[str, object] = {}
    kernels = GpuKernels(gpu)
    rng = np.random.default_rng(0)
    with gpu.new_stream() as stream:
        # The copy: 1 GiB each way, far more than any cache holds.
        size = 1 << 30
        a, b = (gpu.allocate((size,), np.uint8, stream) for _ in range(2))
        native = [core.Buffer.from_handle(x.pointer, size, owner=x.buffer) for x in (a, b)]
        copy = median(
            seconds_per_launch(
                gpu, lambda: native[1].copy_from(native[0], stream=stream.native), stream
            )
        )
        rate = 2 * size / copy
        results["copy_gb_per_s"] = round(rate / 1e9, 1)
        image = rng.normal(size=(1, CHANNELS, SIDE, SIDE)).astype(np.float32)
        masks = rng.random((BATCH // 2, GRID, GRID), dtype=np.float32)
        for scale in (0.1, 0.0):
            jobs = [
                Job(0, k, k, 7, scale, (2 * k, 2 * k + 1, SKIP, SKIP)) for k in range(BATCH // 2)
            ]
            held = [gpu.upload(x, stream) for x in (image, masks, pack_jobs(jobs))]
            for dtype, itemsize in (("float16", 2), ("bfloat16", 2), ("float32", 4)):
                numpy_dtype = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}
                # Several batches in turn, so that none is still in the L2 cache when it is written.
                outs = [
                    gpu.allocate((BATCH, CHANNELS, SIDE, SIDE), numpy_dtype[dtype], stream)
                    for _ in range(8)
                ]
                turn = iter(range(10**9))

                def work(outs=outs, held=held, dtype=dtype, turn=turn):
                    kernels.blend(*held, outs[next(turn) % len(outs)], stream, dtype)

                samples = seconds_per_launch(gpu, work, stream)
                moved = BATCH * CHANNELS * SIDE * SIDE * itemsize + image.nbytes + masks.nbytes
                spent = median(samples)
                results[f"{dtype}, sigma {scale}"] = {
                    "microseconds": round(spent * 1e6, 2),
                    "samples_us": [round(s * 1e6, 2) for s in samples],
                    "gb_per_s": round(moved / spent / 1e9, 1),
                    "share_of_copy_rate": round(moved / spent / rate, 3),
                }
                for out in outs:
                    out.close(stream)
        stream.synchronise()
    return results


def workload(gpu: Gpu) -> None:
    """A few launches of every path, small: sanitizers are slow."""
    kernels = GpuKernels(gpu)
    rng = np.random.default_rng(0)
    with gpu.new_stream() as stream:
        for size, dtype, held in (
            ((32, 32), "float16", np.float16),
            ((9, 13), "float16", np.float16),
            ((32, 32), "bfloat16", np.uint16),
            ((9, 13), "float32", np.float32),
        ):
            image = gpu.upload(rng.normal(size=(1, 3, *size)).astype(np.float32), stream)
            masks = gpu.upload(rng.random((2, 4, 4), dtype=np.float32), stream)
            jobs = [Job(0, k, k, 7, 0.1, tuple(range(4 * k, 4 * k + 4))) for k in range(2)]
            out = gpu.allocate((8, 3, *size), held, stream)
            kernels.blend(image, masks, gpu.upload(pack_jobs(jobs), stream), out, stream, dtype)
        embedding = gpu.upload(rng.normal(size=(40, 7, 7)).astype(np.float32), stream)
        low = gpu.allocate((40, 7, 7), np.float32, stream)
        kept = gpu.allocate((40,), np.int32, stream)
        kernels.normalise(embedding, low, kept, (56, 56), stream)
        gram = gpu.upload(np.eye(7, dtype=np.float32), stream)
        weighted = gpu.allocate((40, 7, 7), np.float32, stream)
        kernels.gram_apply(low, gram, gram, weighted, stream)
        products = gpu.upload(np.eye(40, dtype=np.float32), stream)
        distances = gpu.allocate((780,), np.float32, stream)
        kernels.cosine_distance(products, distances, stream)
        members = gpu.upload(np.arange(40, dtype=np.int32), stream)
        offsets = gpu.upload(np.array([0, 15, 40], np.int32), stream)
        clusters = gpu.allocate((2, 7, 7), np.float32, stream)
        kernels.cluster_masks(low, members, offsets, clusters, (56, 56), "renormalised", stream)
        impacts = gpu.upload(np.ones((1, 2), np.float32), stream)
        maps = gpu.allocate((2, 7, 7), np.float32, stream)
        saliency = gpu.allocate((1, 56, 56), np.float32, stream)
        coverage = gpu.allocate((56, 56), np.float32, stream)
        kernels.aggregate(clusters, impacts, maps, saliency, coverage, stream)
        stream.synchronise()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", action="store_true", help="only launch kernels")
    workload_only = parser.parse_args().workload
    try:
        gpu = Gpu()
    except DeviceError as error:
        sys.exit(str(error))
    if workload_only:
        workload(gpu)
        return
    report: dict[str, object] = {"probe": probe(gpu)}
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/kernels"]
    report["parity"] = run(tests, 150)
    watched = [sys.executable, __file__, "--workload"]
    for tool in ("memcheck", "racecheck"):
        report[tool] = run(
            ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *watched], 150
        )
    report["bandwidth"] = bandwidth(gpu)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
