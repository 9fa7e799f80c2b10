"""Everything to prove about the GPU engines, in one command, within ten minutes.

    python -m benchmarks.gpu.engines --bundle DIR [--masks 70] [--model NAME] [PICTURES...]

For each engine that can run, in a process and a time limit of its own: parity of encode, score and
of whole explanations with the CPU engine; the time of a mask batch by the device's events and of
encoding by the clock; explanations one by one (p50, p99, the share outside the forward passes) and
packed; the device's matrix rate and what is reached of it; and, where torch and timm are there and
a model is named, PyTorch doing the same by turns: a mask at a time in float32, batched in float32
and float16, and compiled. ``--masks K`` cuts the clustering of each picture where it leaves K
masks: 2K + 1 forward passes.

What fails is a line in the report and does not stop the rest; what there is no time for is left out
and named. A JSON file is replaced after every step, so that a killed command loses one step. The
last line is that JSON. Never ran on hardware so far: see docs/gpu-notes.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu.contest import OURS, Pictures, chosen, contenders, contest
from benchmarks.gpu.operations import operations_of_a_pass
from benchmarks.gpu.probe import ROOT, matrix_rates, probe, run_tests
from benchmarks.gpu.report import Report, default_path, line_of
from vitcx.evaluation.precision import rank_correlation
from vitcx.evaluation.speed import summary
from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.host.blend import MASKED, NOISY, Perturbation
from vitcx.runtime.engines.registry import probe_engines
from vitcx.runtime.engines.session import PixelBatch, Session
from vitcx.runtime.explainer import Explainer, load
from vitcx.runtime.pictures.preprocess import prepare

ENGINES = ("cuda", "tensorrt", "tensorrt-rtx")
SECONDS = 560.0
REPEATS = 20
ONE_BY_ONE = 200  # so that the 99th percentile is not the worst of all
PARITY_ROWS, PARITY_PICTURES = 8, 2
PACKED = 64
DEFAULT_ROWS = 128


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


def against_torch(
    explainer: Explainer, pictures: Pictures, arguments: argparse.Namespace, clock: Clock,
    report: Report,
) -> dict[str, Any]:  # fmt: skip
    """The same explanations by PyTorch, the contenders taking turns."""
    module, told = torch_model(arguments)
    module = module.requires_grad_(False).eval().cuda()
    # The same model on both sides, or only one of the same size: this tells.
    told["probabilities_differ_by"] = _difference(module, explainer, pictures.pixels[0])
    entered = contenders(explainer, module, pictures, arguments.masks)

    def put(found: dict[str, Any]) -> None:
        report.put("torch", {**told, "explanations": found})

    rounds = -(-REPEATS // len(pictures))
    return {**told, "explanations": contest(entered, len(pictures), rounds, clock, put)}


def torch_model(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model that the bundle was made of, and where its weights came from."""
    if arguments.random_weights is not None:
        from benchmarks.gpu.bundle import random_model

        seed = arguments.random_weights
        return random_model(arguments.model, seed), {"weights": f"random, seed {seed}"}
    from vitcx.export.sources.timm_models import timm_model

    module, source = timm_model(arguments.model, arguments.checkpoint)
    return module, {"weights": source}


def _difference(module: Any, explainer: Explainer, picture: np.ndarray) -> float:
    import torch

    with torch.no_grad():
        device = next(module.parameters()).device
        theirs = module(torch.from_numpy(picture[None]).to(device)).softmax(dim=1).cpu().numpy()
    return float(np.abs(theirs - explainer.session.predict(picture[None])).max())


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


def child(arguments: argparse.Namespace, report: Report) -> None:
    """One engine's report."""
    clock = Clock(arguments.seconds)
    start = time.perf_counter()
    # A bundle for a benchmark may have random weights, whose precision nobody has measured.
    explainer = load(
        arguments.bundle, engine=arguments.only, batch_size=rows(arguments), allow_imprecise=True
    )
    report.put("open_seconds", time.perf_counter() - start)
    with explainer, load(arguments.bundle, engine="onnxruntime", allow_imprecise=True) as cpu:
        pixels = [prepare(path, explainer.manifest).pixels for path in arguments.pictures]
        report.put("pictures", "given" if pixels else "made")
        pixels = pixels or made_pictures(explainer.manifest.input_size, 4)
        pictures = chosen(explainer, pixels, arguments.masks)
        measure(explainer, cpu, pictures, clock, report)
        if clock.allows("matrix rate", 10):
            report.step("matrix_tflop_per_s", matrix_rates)
            report.step("share_of_matrix_rate", lambda: share_of_matrix_rate(report.found))
        if arguments.model is not None and clock.allows("torch", 60):
            few = Pictures(*(part[:4] for part in vars(pictures).values()))
            report.step("torch", lambda: against_torch(explainer, few, arguments, clock, report))
        report.step("goal", lambda: goal(report.found))
        # Last: hundreds of passes of a large model on the CPU may take what time there is.
        if clock.allows("parity of maps", 30):
            report.step("map_parity", lambda: map_parity(explainer, cpu, pictures))
        report.put("left_out", clock.left_out)


def rows(arguments: argparse.Namespace) -> int:
    """Of a mask batch: all of an explanation, where the number of masks is given."""
    if arguments.batch_size is not None:
        return int(arguments.batch_size)
    return DEFAULT_ROWS if arguments.masks is None else 2 * int(arguments.masks)


def run_child(engine: str, given: Sequence[str], seconds: float, path: Path) -> dict[str, Any]:
    """An engine's report, of a process that may crash or hang: what it had found till then."""
    command = [sys.executable, "-m", "benchmarks.gpu.engines", *given, "--only", engine]
    command += ["--seconds", str(max(1.0, seconds - 10)), "--out", str(path)]
    error = None
    try:
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=seconds,
            check=False, cwd=ROOT,
        )  # fmt: skip
        if done.returncode:
            error = f"ended with {done.returncode}: {done.stderr.strip()[-600:]}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {seconds:.0f} s"
    found: dict[str, Any] = {}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    return found if error is None else {"error": error, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", nargs="*", type=Path, help="default: made ones")
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--masks", type=int, help="of each picture; default: as the bundle has it")
    parser.add_argument("--model", help="of timm, with the bundle's weights: PyTorch takes part")
    parser.add_argument("--checkpoint", type=Path, help="the model's weights")
    parser.add_argument("--random-weights", type=int, metavar="SEED", help="instead, as in bundle")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--batch-size", type=int, help="default: 2 * masks, or 128")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--out", type=Path, help="JSON; default: one of this run's own in out/gpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.masks is not None and arguments.masks < 1:
        parser.error("--masks is at least 1")
    for name in ("bundle", "checkpoint"):  # a child runs in the checkout's folder
        value = getattr(arguments, name)
        if value is not None and Path(value).exists():
            setattr(arguments, name, Path(value).resolve())
    arguments.pictures = [path.resolve() for path in arguments.pictures]
    if arguments.only is not None:
        report = Report(arguments.out)
        try:
            child(arguments, report)
        except Exception as error:
            report.put("error", line_of(error))
        print(report.text())
        return
    try:
        Gpu()
    except DeviceError as error:
        sys.exit(str(error))
    report = Report((arguments.out or default_path("engines")).resolve())
    run_all(arguments, report)
    print(report.text())


def run_all(arguments: argparse.Namespace, report: Report) -> None:
    """The machine, and every engine that can run here; the others with what they lack."""
    clock = Clock(arguments.seconds)
    probe(report)
    report.put("bundle", str(arguments.bundle))
    statuses = {status.name: status for status in probe_engines()}
    names = arguments.engines.split(",")
    unknown = {name: {"error": "there is no such engine"} for name in names if name not in statuses}
    lacking = {
        name: {"error": "; ".join(statuses[name].problems)}
        for name in names
        if name in statuses and not statuses[name].available
    }
    engines: dict[str, Any] = {**unknown, **lacking}
    report.put("engines", engines)
    able = [name for name in names if name not in engines]
    if "cuda" in able:
        report.step(
            "tests", lambda: run_tests(["tests/runtime/engines/ort_cuda/test_session.py"], 60)
        )
    for place, name in enumerate(able):
        seconds = clock.left / (len(able) - place)
        path = (report.path or default_path("engines")).with_suffix(f".{name}.json")
        path.unlink(missing_ok=True)
        engines[name] = run_child(name, options_of(arguments), seconds, path)
        report.put("engines", engines)
        print(name, json.dumps(engines[name].get("goal")), engines[name].get("error", ""),
              file=sys.stderr)  # fmt: skip


def options_of(arguments: argparse.Namespace) -> list[str]:
    """What a child is called with: paths are absolute."""
    words = ["--bundle", str(arguments.bundle)]
    for name in ("masks", "model", "checkpoint", "random_weights", "batch_size"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, *map(str, arguments.pictures)]


if __name__ == "__main__":
    main()
