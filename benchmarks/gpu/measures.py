"""What is measured of one GPU engine: parity, passes, explanations, the share of its ceiling."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu.contest import OURS, Pictures
from benchmarks.gpu.probe import Report
from benchmarks.gpu.workload import operations_of_a_pass
from vitcx.evaluation.map_agreement import rank_correlation
from vitcx.evaluation.speed import interleave, summary
from vitcx.kernels.host.blend import MASKED, NOISY, Perturbation
from vitcx.runtime.engines.session import PixelBatch, Session
from vitcx.runtime.explainer import Explainer

REPEATS = 20
ONE_BY_ONE = 200  # so that the 99th percentile is not the worst of all
PARITY_ROWS, PARITY_PICTURES = 8, 2
PACKED = 64


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


def mask_batch(picture: np.ndarray, grid: tuple[int, int], rows: int) -> PixelBatch:
    """Rows of one picture, masked and noised by turns."""
    masks = np.random.default_rng(1).random((-(-rows // 2), *grid), dtype=np.float32)
    perturbations = [
        Perturbation(0, k, k, 7, 0.1, ((MASKED, 2 * k), (NOISY, 2 * k + 1))[: rows - 2 * k])
        for k in range(len(masks))
    ]
    return PixelBatch([picture], list(masks), perturbations, rows)


def parity(ours: Explainer, cpu: Explainer, pictures: Pictures) -> dict[str, Any]:
    """Largest differences to the CPU engine, of encoding and of a few masked rows."""
    images = np.stack(pictures.pixels[:PARITY_PICTURES])
    found, expected = ours.session.encode(images), cpu.session.encode(images)
    rows = min(PARITY_ROWS, ours.session.batch_size, cpu.session.batch_size)
    batch = mask_batch(images[0], ours.manifest.grid, rows)
    scores = [e.session.score(batch).probabilities for e in (ours, cpu)]
    return {
        "probabilities": float(np.abs(found[0] - expected[0]).max()),
        "embedding": float(np.abs(found[1] - expected[1]).max()),
        "embedding_scale": float(np.abs(expected[1]).max()),
        "masked_scores": float(np.abs(scores[0] - scores[1]).max()),
    }


def map_parity(ours: Explainer, cpu: Explainer, pictures: Pictures) -> dict[str, Any]:
    """Largest differences of whole maps to the CPU engine's, and their rank correlation."""
    maps = [
        [
            e.explain(pictures.pixels[i], pictures.classes[i], **pictures.settings[i])
            .saliency[0]
            .ravel()
            for e in (ours, cpu)
        ]
        for i in range(min(PARITY_PICTURES, len(pictures)))
    ]
    return {
        "saliency": [float(np.abs(a - b).max()) for a, b in maps],
        "saliency_rank_correlation": [rank_correlation(a, b) for a, b in maps],
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
    images = {count: np.stack([picture] * count) for count in (1, 8)}
    calls: dict[str, Callable[[int], object]] = {
        f"encode_{n}_seconds": partial(_encode, session, x) for n, x in images.items()
    }
    for call in calls.values():
        call(0)
    spent = interleave(calls, 1, REPEATS, pause=0)
    return result | {name: median(samples) for name, samples in spent.items()}


def _encode(session: Session, images: np.ndarray, _: int) -> None:
    session.encode(images)


def one_by_one(explainer: Explainer, pictures: Pictures, clock: Clock) -> dict[str, Any]:
    """Whole explanations: their time, their passes, and the share outside of those."""
    explainer.explain(pictures.pixels[0], **pictures.settings[0])
    spent, outside, counts = [], [], []
    for turn in range(ONE_BY_ONE):
        if clock.left < 30:
            break
        i = turn % len(pictures)
        start = time.perf_counter()
        result = explainer.explain(pictures.pixels[i], **pictures.settings[i])
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


def packed(explainer: Explainer, pictures: Pictures) -> dict[str, Any]:
    """Explanations a second where pictures share batches."""
    order = [i % len(pictures) for i in range(PACKED)]
    start = time.perf_counter()
    requests = (explainer.request(pictures.pixels[i], **pictures.settings[i]) for i in order)
    count = 0
    for result in explainer.explain_requests(requests):
        if isinstance(result, Exception):
            raise result
        count += 1
    spent = time.perf_counter() - start
    return {"explanations": count, "seconds": spent, "per_second": count / spent}


def measure(
    explainer: Explainer, cpu: Explainer, pictures: Pictures, clock: Clock, report: Report
) -> None:
    """Everything that needs no PyTorch."""
    session, manifest = explainer.session, explainer.manifest
    report.put("device", session.device)
    report.put("precision", manifest.precision)
    report.put("masks", list(pictures.masks) or None)
    report.step("operations_of_a_pass", lambda: operations_of_a_pass(explainer.bundle.model_path))
    steps: tuple[tuple[str, float, Callable[[], dict[str, Any]]], ...] = (
        ("parity", 20, lambda: parity(explainer, cpu, pictures)),
        ("passes", 20, lambda: passes(session, pictures.pixels[0], manifest.grid)),
        ("one_by_one", 40, lambda: one_by_one(explainer, pictures, clock)),
        ("packed", 30, lambda: packed(explainer, pictures)),
    )
    for name, seconds, step in steps:
        if clock.allows(name, seconds):
            report.step(name, step)


def share_of_matrix_rate(found: Mapping[str, Any]) -> dict[str, float]:
    """What a mask batch, and a whole explanation, reach of the matrix rate of their type."""
    kind = {"fp16": "float16", "bf16": "bfloat16"}.get(found["precision"], "float32")
    peak = found["matrix_tflop_per_s"][kind] * 1e12
    operations = found["operations_of_a_pass"]
    whole, timed = found.get("one_by_one", {}), found.get("passes", {})
    shares = {}
    if "rows_per_second" in timed:
        shares["mask_batch"] = timed["rows_per_second"] * operations / peak
    if "p50" in whole:
        shares["explanation"] = whole["forward_passes"] * operations / whole["p50"] / peak
    return shares


def goal(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that the engine is judged by, of what was measured; None for the others."""
    whole, shares = found.get("one_by_one", {}), found.get("share_of_matrix_rate", {})
    explanations = (found.get("torch") or {}).get("explanations", {})
    return {
        "forward_passes": whole.get("forward_passes"),
        "p50_seconds": whole.get("p50"),
        "p99_seconds": whole.get("p99"),
        "outside_forward_passes": whole.get("outside_forward_passes"),
        "packed_per_second": found.get("packed", {}).get("per_second"),
        "share_of_matrix_rate": shares.get("explanation"),
        "faster_than": {
            name: told["ours_is_faster_by"]["median"]
            for name, told in explanations.items()
            if name != OURS and "ours_is_faster_by" in told
        },
    }
