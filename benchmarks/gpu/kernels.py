"""Everything to prove about the kernels on a GPU, in one command, within ten minutes.

    python -m benchmarks.gpu.kernels

Probe, parity (the tests marked gpu), time against the byte floor at batch 128 x 3 x 224 x 224,
memcheck and racecheck, each under its own time limit. What fails is a line in the report and does
not stop the rest; a JSON file is replaced after every step. The last line is that JSON. Never ran
on hardware so far: see docs/gpu-notes.md. With --workload it only launches kernels, for
compute-sanitizer to watch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from benchmarks.command import Benchmark, out_option
from benchmarks.gpu.probe import Report, default_path, probe, run, run_tests
from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu import mask_kernels
from vitcx.kernels.gpu.blending import blend_rows, pack_perturbations
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.gpu.streams import Stream
from vitcx.kernels.host.blend import MASKED, NOISY, Perturbation

BATCH, CHANNELS, SIDE, GRID = 128, 3, 224, 14
REPEATS, LAUNCHES = 20, 50
SECONDS = 150  # for the tests, and for each sanitizer


def seconds_per_launch(gpu: Gpu, work: Callable[[], None], stream: Stream) -> list[float]:
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
    from vitcx.kernels.gpu.cuda_modules import cuda_module

    core = cuda_module()
    results: dict[str, object] = {}
    launcher = KernelLauncher(gpu)
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
            perturbations = [
                Perturbation(
                    0,
                    k,
                    k,
                    7,
                    scale,
                    (
                        (MASKED, 2 * k),
                        (NOISY, 2 * k + 1),
                    ),
                )
                for k in range(BATCH // 2)
            ]
            images, low, packed = (
                gpu.upload(x, stream) for x in (image, masks, pack_perturbations(perturbations))
            )
            # Several batches in turn, so that none is still in the L2 cache when it is written.
            shape = (BATCH, CHANNELS, SIDE, SIDE)
            outs = [gpu.allocate(shape, np.float32, stream) for _ in range(8)]
            turn = iter(range(10**9))

            def work(
                outs: Any = outs,
                images: Any = images,
                low: Any = low,
                packed: Any = packed,
                turn: Any = turn,
            ) -> None:
                blend_rows(launcher, images, low, packed, outs[next(turn) % len(outs)], stream)

            samples = seconds_per_launch(gpu, work, stream)
            moved = outs[0].nbytes + image.nbytes + masks.nbytes
            spent = median(samples)
            results[f"sigma {scale}"] = {
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
    launcher = KernelLauncher(gpu)
    rng = np.random.default_rng(0)
    with gpu.new_stream() as stream:
        for size in ((32, 32), (9, 13)):
            image = gpu.upload(rng.normal(size=(1, 3, *size)).astype(np.float32), stream)
            masks = gpu.upload(rng.random((2, 4, 4), dtype=np.float32), stream)
            perturbations = [
                Perturbation(0, k, k, 7, 0.1, tuple((kind, 4 * k + kind) for kind in range(4)))
                for k in range(2)
            ]
            out = gpu.allocate((8, 3, *size), np.float32, stream)
            blend_rows(
                launcher,
                image,
                masks,
                gpu.upload(pack_perturbations(perturbations), stream),
                out,
                stream,
            )
        embedding = gpu.upload(rng.normal(size=(2, 40, 7, 7)).astype(np.float32), stream)
        low = gpu.allocate((2, 40, 7, 7), np.float32, stream)
        kept = gpu.allocate((2, 40), np.int32, stream)
        mask_kernels.normalise(launcher, embedding, low, kept, (56, 56), stream)
        gram = gpu.upload(np.eye(7, dtype=np.float32), stream)
        weighted = gpu.allocate((2, 40, 7, 7), np.float32, stream)
        mask_kernels.gram_apply(launcher, low, gram, gram, weighted, stream)
        vectors = rng.normal(size=(2, 40, 5))
        cosines = np.ascontiguousarray(vectors @ vectors.swapaxes(1, 2), np.float32)
        products = gpu.upload(cosines, stream)
        mask_kernels.cosine_distance(launcher, products, stream)
        clusters = mask_kernels.Clusters(
            gpu.allocate((2, 40), np.int32, stream),
            gpu.allocate((2, 41), np.int32, stream),
            gpu.allocate((2,), np.int32, stream),
        )
        thresholds = gpu.upload(np.array([0.2, 0.5], np.float32), stream)
        room = gpu.allocate((2, 6, 40), np.int32, stream)
        mask_kernels.complete_linkage(launcher, products, kept, thresholds, room, clusters, stream)
        modes = gpu.upload(np.array([0, 1], np.int32), stream)
        mask_kernels.cluster_masks(launcher, low, clusters, modes, weighted, (56, 56), stream)
        merged = gpu.upload(rng.random((2, 7, 7), dtype=np.float32), stream)
        impacts = gpu.upload(np.ones((1, 2), np.float32), stream)
        maps = gpu.allocate((2, 7, 7), np.float32, stream)
        saliency = gpu.allocate((1, 56, 56), np.float32, stream)
        coverage = gpu.allocate((56, 56), np.float32, stream)
        mask_kernels.aggregate(launcher, merged, impacts, maps, saliency, coverage, stream)
        stream.synchronise()


def sanitizer(tool: str) -> dict[str, Any]:
    """compute-sanitizer over every kernel of ours."""
    watched = [sys.executable, "-m", "benchmarks.gpu.kernels", "--workload"]
    return run(["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *watched], SECONDS)


@click.command(cls=Benchmark)
@click.option("--workload", "only_launch", is_flag=True, help="Only launch kernels.")
@out_option("JSON file.  [default: a file of this run's own in out/gpu]")
def main(only_launch: bool, out: Path | None) -> None:
    """Prove the kernels."""
    if only_launch:
        try:
            workload(own_gpu())
        except DeviceError as error:
            sys.exit(str(error))
        return
    report = Report((out or default_path("kernels")).resolve())
    run_all(report)
    click.echo(report.text())
    sys.exit(1 if report.failed else 0)


def own_gpu() -> Gpu:
    """The first GPU, current on this thread: nobody else uses it."""
    gpu = Gpu()
    gpu.make_current()
    return gpu


def run_all(report: Report) -> None:
    """Every step, whatever became of the ones before."""
    probe(report)
    report.step("parity", lambda: run_tests(["tests/kernels/gpu/test_gpu.py"], SECONDS))
    report.step("bandwidth", lambda: bandwidth(own_gpu()))
    for tool in ("memcheck", "racecheck"):
        report.step(tool, partial(sanitizer, tool))


if __name__ == "__main__":
    main()
