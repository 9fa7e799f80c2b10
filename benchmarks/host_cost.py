"""What an explanation costs outside the engine: the host's steps, and the blend's share.

    python -m benchmarks.host_cost PICTURE --bundle DIR --masks 70 --out FILE

On a CPU the steps are next to nothing of an explanation. On a GPU, whose forward passes take
milliseconds, they are what one explanation at a time waits for. The engine here is ONNX Runtime's
CPU, which makes the embedding. The blend of whole explanations is set beside the scoring it feeds,
with noise made for it (a new seed) and with noise kept from before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import click
import numpy as np

from benchmarks.command import Benchmark, bundle_option, finish, out_option
from benchmarks.gpu.workload import threshold_for
from vitcx.evaluation.speed import interleave
from vitcx.runtime.demo.scenes import FIRST_FRESH_SEED, make_scene
from vitcx.runtime.explainer import Explainer, load
from vitcx.runtime.method.aggregation import aggregate
from vitcx.runtime.method.clustering import cluster
from vitcx.runtime.method.masks import cosine_distances, merge_masks, vit_masks
from vitcx.runtime.pictures.preprocess import prepare


def measure(explainer: Explainer, picture: Any, masks: int, rounds: int) -> dict[str, Any]:
    """Median and quartiles of each step in milliseconds, and of the blend's share."""
    manifest = explainer.manifest
    pixels = prepare(picture, manifest).pixels
    _, (embedding,) = explainer.session.encode(pixels[None])
    size = manifest.input_size
    threshold, count = threshold_for(embedding, size, masks)
    low = vit_masks(embedding, size)
    distances = cosine_distances(low, size)
    labels = cluster(distances, threshold)
    merged = merge_masks(low, labels, size, "mean")
    impacts = np.random.default_rng(0).normal(size=(1, count)).astype(np.float32)
    steps: dict[str, Callable[[int], object]] = {
        "read and crop": lambda _: prepare(picture, manifest),
        "masks": lambda _: vit_masks(embedding, size),
        "distances": lambda _: cosine_distances(low, size),
        "clustering": lambda _: cluster(distances, threshold),
        "merging": lambda _: merge_masks(low, labels, size, "mean"),
        "aggregation": lambda _: aggregate(merged, impacts, size, correct_coverage=True),
    }
    for step in steps.values():
        step(0)
    found = interleave(steps, 1, rounds, pause=0)
    return {
        "model": manifest.model_name,
        "channels": len(embedding),
        "masks": count,
        "rounds": rounds,
        "milliseconds": {name: _quartiles([1000 * x for x in s]) for name, s in found.items()},
        "blend_percent_of_scoring": blend_shares(explainer, pixels, rounds),
    }


def blend_shares(explainer: Explainer, pixels: Any, rounds: int) -> dict[str, Any]:
    """Quartiles, in per cent. Shares are of one explanation: the machine's speed swings."""
    seeds = itertools.count(1)
    shares: dict[str, list[float]] = {"noise made": [], "noise kept": []}

    def explain(name: str, seed: int) -> None:
        timings = explainer.explain(pixels, seed=seed).timings
        shares[name].append(100 * timings["blend"] / timings["score"])

    calls: Mapping[str, Callable[[int], object]] = {
        "noise made": lambda _: explain("noise made", next(seeds)),
        "noise kept": lambda _: explain("noise kept", 0),
    }
    explainer.explain(pixels, seed=0)
    interleave(calls, 1, max(2, rounds // 4))
    return {name: _quartiles(values) for name, values in shares.items()}


def _quartiles(values: Sequence[float]) -> dict[str, Any]:
    low, middle, high = (round(float(q), 2) for q in quantiles(values))
    return {"median": middle, "quartiles": [low, high]}


@click.command(cls=Benchmark)
@click.argument("picture", required=False, type=click.Path(path_type=Path))
@bundle_option
@click.option("--masks", default=70, show_default=True, help="As near to it as clustering comes.")
@click.option("--rounds", type=click.IntRange(min=2), default=31, show_default=True)
@out_option("JSON file.")
def main(picture: Path | None, bundle: str, masks: int, rounds: int, out: Path | None) -> None:
    """Time the host's steps on PICTURE; without one, on a drawn scene."""
    chosen: Any = picture if picture is not None else make_scene(FIRST_FRESH_SEED).image
    with load(bundle, "onnxruntime", allow_imprecise=True) as explainer:
        report = measure(explainer, chosen, masks, rounds)
    for name, row in report["milliseconds"].items():
        click.echo(f"{name:14} {row['median']:7.2f} ms  {row['quartiles']}")
    for name, row in report["blend_percent_of_scoring"].items():
        click.echo(f"blend, {name}: {row['median']:.2f} % of scoring  {row['quartiles']}")
    finish(report, out, ("onnxruntime", "scipy"))


if __name__ == "__main__":
    main()
