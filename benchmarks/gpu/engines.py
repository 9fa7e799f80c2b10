"""Everything to prove about the GPU engines, in one command, within ten minutes.

    python -m benchmarks.gpu.engines --bundle DIR [--model NAME --checkpoint FILE] [PICTURES...]

For each engine, in a process and a time limit of its own: parity of encode, score and of whole
explanations with the CPU engine; the time of a mask batch by the device's events and of encoding by
the clock; explanations one by one (p50, p99, the share outside the forward passes) and packed; the
device's matrix rate; and, where torch and timm are there and a model is named, PyTorch doing the
same by turns: a mask at a time in float32, batched in float32 and float16, and compiled. What there
is no time for is left out and named. The last line is JSON. Never ran on hardware so far: see
docs/gpu-notes.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from vitcx.evaluation.speed import interleave, summary
from vitcx.kernels.blend import Job
from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu import Gpu
from vitcx.runtime.errors import VitcxError
from vitcx.runtime.explainer import Explainer, load
from vitcx.runtime.preprocess import prepare
from vitcx.runtime.session import Batch, Session

ENGINES = ("cuda", "tensorrt", "tensorrt-rtx")
SECONDS = 560.0
REPEATS = 20
PARITY_ROWS, PARITY_PICTURES = 8, 2
PACKED = 64
MATRIX_SIDE = 8192


class Clock:
    """The time that is left, and what was left out for want of it."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.left_out: list[str] = []

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def allows(self, what: str, seconds: float) -> bool:
        """Whether there are so many seconds left; if not, `what` is noted as left out."""
        if self.left < seconds:
            self.left_out.append(what)
        return self.left >= seconds


def made_pictures(size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Normalised (3,H,W) float32 of soft blobs, for where no photographs are given."""
    rng = np.random.default_rng(0)
    rows, columns = (np.arange(n) * 9 // n for n in size)
    coarse = rng.normal(size=(count, 3, 9, 9)).astype(np.float32)
    return list(np.ascontiguousarray(coarse[:, :, rows][:, :, :, columns]))


def mask_batch(picture: np.ndarray, grid: tuple[int, int], rows: int) -> Batch:
    """Rows of one picture, masked and noised by turns."""
    masks = np.random.default_rng(1).random((-(-rows // 2), *grid), dtype=np.float32)
    jobs = [
        Job(0, k, k, 7, 0.1, (2 * k, 2 * k + 1 if 2 * k + 1 < rows else -1, -1, -1))
        for k in range(len(masks))
    ]
    return Batch([picture], list(masks), jobs, rows)


def parity(ours: Explainer, cpu: Explainer, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """Largest differences to the CPU engine, and the rank correlation of whole maps."""
    images = np.stack(pictures[:PARITY_PICTURES])
    found, expected = ours.session.encode(images), cpu.session.encode(images)
    rows = min(PARITY_ROWS, ours.session.batch_size, cpu.session.batch_size)
    batch = mask_batch(images[0], ours.manifest.grid, rows)
    scores = [e.session.score(batch).probabilities for e in (ours, cpu)]
    maps = [
        [e.explain(picture, targets=int(p.argmax())).saliency[0].ravel() for e in (ours, cpu)]
        for picture, p in zip(images, expected[0], strict=True)
    ]
    return {
        "probabilities": float(np.abs(found[0] - expected[0]).max()),
        "embedding": float(np.abs(found[1] - expected[1]).max()),
        "embedding_scale": float(np.abs(expected[1]).max()),
        "masked_scores": float(np.abs(scores[0] - scores[1]).max()),
        "saliency": [float(np.abs(a - b).max()) for a, b in maps],
        "saliency_rank_correlation": [float(spearmanr(a, b).statistic) for a, b in maps],
    }


def passes(session: Session, picture: np.ndarray, grid: tuple[int, int]) -> dict[str, Any]:
    """Time of a full mask batch on the device, and of an encoding by the clock, copies included."""
    batch = mask_batch(picture, grid, session.batch_size)
    session.score(batch)
    scores = [session.score(batch) for _ in range(REPEATS)]
    result: dict[str, Any] = {
        "batch_size": session.batch_size,
        "blend_seconds": median(s.blend_seconds for s in scores),
        "score_seconds": median(s.forward_seconds for s in scores),
    }
    result["rows_per_second"] = session.batch_size / result["score_seconds"]
    for count in (1, 8):
        images = np.stack([picture] * count)
        session.encode(images)
        spent = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            session.encode(images)
            spent.append(time.perf_counter() - start)
        result[f"encode_{count}_seconds"] = median(spent)
    return result


def one_by_one(
    explainer: Explainer, pictures: Sequence[np.ndarray], clock: Clock
) -> dict[str, Any]:
    """Whole explanations: their time, their passes, and the share outside of those."""
    explainer.explain(pictures[0])
    spent, outside, counts = [], [], []
    for turn in range(3 * REPEATS):
        if clock.left < 30:
            break
        start = time.perf_counter()
        result = explainer.explain(pictures[turn % len(pictures)])
        spent.append(time.perf_counter() - start)
        forward = result.timings["encode"] + result.timings["score"]
        outside.append(1 - forward / spent[-1])
        counts.append(result.settings["forward_passes"])
    if not spent:
        return {"left_out": True}
    return {
        **summary(spent),
        "outside_forward_passes": median(outside),
        "forward_passes": median(counts),
    }


def packed(explainer: Explainer, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """Explanations a second where pictures share batches."""
    many = [pictures[i % len(pictures)] for i in range(PACKED)]
    start = time.perf_counter()
    count = sum(1 for _ in explainer.explain_many(many))
    spent = time.perf_counter() - start
    return {"explanations": count, "seconds": spent, "per_second": count / spent}


def measure(
    explainer: Explainer, cpu: Explainer, pictures: Sequence[np.ndarray], clock: Clock
) -> dict[str, Any]:
    """Everything that needs no PyTorch."""
    session, grid = explainer.session, explainer.manifest.grid
    report: dict[str, Any] = {"device": session.device, "precision": explainer.manifest.precision}
    steps: tuple[tuple[str, float, Callable[[], dict[str, Any]]], ...] = (
        ("parity", 60, lambda: parity(explainer, cpu, pictures)),
        ("passes", 20, lambda: passes(session, pictures[0], grid)),
        ("one_by_one", 40, lambda: one_by_one(explainer, pictures, clock)),
        ("packed", 30, lambda: packed(explainer, pictures)),
    )
    for name, seconds, step in steps:
        if clock.allows(name, seconds):
            report[name] = step()
    return report


def matrix_rates() -> dict[str, Any]:
    """TFLOP/s of square products of random values with torch, by element type."""
    import torch

    rates = {}
    for name in ("float16", "bfloat16", "float32"):
        a, b = (
            torch.randn(MATRIX_SIDE, MATRIX_SIDE, device="cuda", dtype=getattr(torch, name))
            for _ in range(2)
        )
        spent = []
        for _ in range(12):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            torch.matmul(a, b)
            end.record()
            torch.cuda.synchronize()
            spent.append(start.elapsed_time(end) / 1000)
        rates[name] = 2 * MATRIX_SIDE**3 / median(spent[2:]) / 1e12
    return rates


def against_torch(
    explainer: Explainer,
    pictures: Sequence[np.ndarray],
    model: str,
    checkpoint: Path | None,
    clock: Clock,
) -> dict[str, Any]:
    """The same explanations by PyTorch, the contenders taking turns."""
    import copy

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks import plain
    from vitcx.export.models import timm_model

    module, source = timm_model(model, checkpoint)
    module = module.requires_grad_(False).eval().cuda()
    half = copy.deepcopy(module).half()
    compiled: Any = functools.cache(lambda: torch.compile(half, dynamic=True))
    classes = [int(explainer.session.predict(p[None])[0].argmax()) for p in pictures]
    rows = explainer.session.batch_size
    ways: dict[str, tuple[float, Callable[[int], Any]]] = {
        "ours": (5, lambda i: explainer.explain(pictures[i], classes[i])),
        "torch float32, a mask at a time": (
            15,
            lambda i: plain.loop(module, pictures[i], classes[i]),
        ),
        "torch float32": (
            15,
            lambda i: plain.batched(module, pictures[i], classes[i], batch=rows),
        ),
        "torch float16": (15, lambda i: plain.batched(half, pictures[i], classes[i], batch=rows)),
        "torch float16, compiled": (
            90,
            lambda i: plain.batched(half, pictures[i], classes[i], batch=rows, forward=compiled()),
        ),
    }
    contenders = {}
    for name, (seconds, way) in ways.items():
        if clock.allows(name, seconds):
            for i in range(min(2, len(pictures))):
                way(i)  # warm: kernels are chosen and compiled for the shapes that come
            contenders[name] = way
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    while clock.left > 30 and len(samples["ours"]) < REPEATS:
        for name, found in interleave(contenders, len(pictures), 1).items():
            samples[name] += found
    ours = samples["ours"]
    with FlopCounterMode(display=False) as counter:
        module(torch.from_numpy(pictures[0][None]).to(next(module.parameters()).device))
    return {
        "weights": source,
        "flop_of_a_pass": counter.get_total_flops(),
        "matrix_tflop_per_s": matrix_rates() if clock.allows("matrix rate", 10) else None,
        "explanations": {
            name: {**summary(found), "ours_is_faster_by": median(np.divide(found, ours).tolist())}
            for name, found in samples.items()
            if found
        },
    }


def share_of_matrix_rate(report: dict[str, Any], precision: str) -> dict[str, float] | None:
    """What a mask batch, and a whole explanation, reach of the matrix rate of their type."""
    torch_report, timed = report.get("torch"), report.get("passes")
    if not torch_report or not torch_report.get("matrix_tflop_per_s") or not timed:
        return None
    kind = {"fp16": "float16", "bf16": "bfloat16"}.get(precision, "float32")
    peak = torch_report["matrix_tflop_per_s"][kind] * 1e12
    flop = torch_report["flop_of_a_pass"]
    shares = {"mask_batch": timed["rows_per_second"] * flop / peak}
    whole = report.get("one_by_one", {})
    if "p50" in whole:
        shares["explanation"] = whole["forward_passes"] * flop / whole["p50"] / peak
    return shares


def child(arguments: argparse.Namespace) -> dict[str, Any]:
    """One engine's report."""
    clock = Clock(arguments.seconds)
    start = time.perf_counter()
    explainer = load(arguments.bundle, engine=arguments.only, batch_size=arguments.batch_size)
    report: dict[str, Any] = {"open_seconds": time.perf_counter() - start}
    with explainer, load(arguments.bundle, engine="onnxruntime") as cpu:
        manifest = explainer.manifest
        pictures = [prepare(path, manifest).pixels for path in arguments.pictures]
        report["pictures"] = "given" if pictures else "made"
        pictures = pictures or made_pictures(manifest.input_size, 4)
        report |= measure(explainer, cpu, pictures, clock)
        if arguments.model is not None and clock.allows("torch", 60):
            try:
                report["torch"] = against_torch(
                    explainer, pictures[:4], arguments.model, arguments.checkpoint, clock
                )
            except ImportError as error:
                report["torch"] = None
                clock.left_out.append(f"torch: {error}")
        report["share_of_matrix_rate"] = share_of_matrix_rate(report, manifest.precision)
    report["left_out"] = clock.left_out
    return report


def run_child(engine: str, arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """An engine's report, of a process that may crash or hang."""
    command = [sys.executable, "-m", "benchmarks.gpu.engines", *sys.argv[1:], "--only", engine]
    command += ["--seconds", str(max(1.0, seconds - 10))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        tail = (done.stdout + done.stderr).strip()[-600:]
        return {"error": f"ended with {done.returncode}: {tail}"}
    report: dict[str, Any] = json.loads(lines[-1])
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="*", type=Path, help="default: made ones")
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--model", help="of timm, with the bundle's weights: PyTorch takes part")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.pictures = [path.resolve() for path in arguments.pictures]
    if arguments.only is not None:
        try:
            print(json.dumps(child(arguments)))
        except VitcxError as error:
            print(json.dumps({"error": str(error)}))
        return
    clock = Clock(arguments.seconds)
    try:
        gpu = Gpu()
    except DeviceError as error:
        sys.exit(str(error))
    from benchmarks.gpu.kernels import probe

    report: dict[str, Any] = {"probe": probe(gpu), "bundle": str(arguments.bundle), "engines": {}}
    engines = arguments.engines.split(",")
    for place, engine in enumerate(engines):
        seconds = clock.left / (len(engines) - place)
        report["engines"][engine] = run_child(engine, arguments, seconds)
        print(engine, json.dumps(report["engines"][engine]), file=sys.stderr)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
