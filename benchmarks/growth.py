"""How the cost of an explanation grows: with masks, channels, image size and pictures in flight.

    python -m benchmarks.growth PHOTOGRAPHS --bundle DIR [--sized DIR] --out FOLDER

prints a table, writes ``growth.json`` and draws ``growth.png``. ``--sized DIR`` (a bundle of the
same model exported with another ``--img-size``; may be given several times) adds the image sizes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.command import Benchmark, bundle_option, finish, images_argument, out_option
from benchmarks.models import DEMO
from vitcx.evaluation.speed import interleave
from vitcx.evaluation.subjects import find_pictures
from vitcx.runtime.demo.scenes import FIRST_FRESH_SEED, make_scene
from vitcx.runtime.digests import replacing
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer, load
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.method.clustering import cluster
from vitcx.runtime.method.masks import cosine_distances, merge_masks, vit_masks

THRESHOLDS = (0.4, 0.2, 0.1, 0.05, 0.02)
CHANNELS = (192, 384, 768, 1024, 1536)
IN_FLIGHT = (1, 2, 4, 8, 16)
Row = dict[str, Any]


def with_masks(explainer: Explainer, picture: Any, repeats: int) -> list[Row]:
    """By δ, and without clustering: K, seconds, and those outside the forward passes."""
    settings: list[Row] = [{"distance_threshold": t} for t in THRESHOLDS]
    settings.append({"cluster_masks": "none"})
    calls = {str(s): partial(explainer.explain, picture, **s) for s in settings}
    rows = _explained(calls, repeats)
    for row, setting in zip(rows, settings, strict=True):
        row["setting"] = setting
    return sorted(rows, key=lambda row: int(row["masks"]))


def with_channels(grid: tuple[int, int], size: tuple[int, int], repeats: int) -> list[Row]:
    """By D: the seconds from an embedding to its K masks, without any model.

    The embeddings are drawn: 24 smooth patterns, each channel one of them and a little of others.
    """
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((24, *grid)).cumsum(axis=1).cumsum(axis=2)
    calls: dict[str, Callable[[], int]] = {}
    for channels in CHANNELS:
        weights = np.eye(24)[rng.integers(24, size=channels)]
        weights += 0.1 * rng.standard_normal(weights.shape)
        embedding = np.tensordot(weights, patterns, 1).astype(np.float32)

        def steps(embedding: Any = embedding) -> int:
            masks = vit_masks(embedding, size)
            labels = cluster(cosine_distances(masks, size), 0.1)
            return len(merge_masks(masks, labels, size, "renormalised"))

        calls[str(channels)] = steps
    seconds, found = _timed(calls, repeats)
    return [
        {"channels": channels, "seconds": statistics.median(seconds[name]), "masks": found[name][0]}
        for channels, name in zip(CHANNELS, calls, strict=True)
    ]


def with_size(explainers: Sequence[Explainer], picture: Any, repeats: int) -> list[Row]:
    """By the model's input size: K, seconds, and seconds for each forward pass."""
    calls = {e.manifest.model_sha256: partial(e.explain, picture) for e in explainers}
    rows = _explained(calls, repeats)
    for row, explainer in zip(rows, explainers, strict=True):
        row["height"] = explainer.manifest.input_size[0]
    return sorted(rows, key=lambda row: int(row["height"]))


def with_pictures(explainer: Explainer, pictures: list[Any], repeats: int) -> list[Row]:
    """By the pictures held at a time: explanations a second."""

    def stream(limit: int) -> None:
        requests = [explainer.request(picture, None) for picture in pictures]
        with explainer.open_pipeline(limit=limit) as pipeline:
            for ticket in pipeline.stream(requests):
                ticket.result()

    calls = {str(limit): partial(stream, limit) for limit in IN_FLIGHT}
    seconds, _ = _timed(calls, repeats)
    return [
        {"in_flight": limit, "per_second": len(pictures) / statistics.median(seconds[name])}
        for limit, name in zip(IN_FLIGHT, calls, strict=True)
    ]


def _timed(
    calls: Mapping[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Seconds and results of `repeats` calls each, in turns, after one to warm up."""
    results: dict[str, list[Any]] = {name: [] for name in calls}

    def keep(_: int, name: str) -> None:
        results[name].append(calls[name]())

    for call in calls.values():
        call()
    turns = {name: partial(keep, name=name) for name in calls}
    return interleave(turns, 1, repeats), results


def _explained(calls: Mapping[str, Callable[[], Explanation]], repeats: int) -> list[Row]:
    """For each: K, passes, seconds, those outside the forward passes, and seconds of a pass."""
    rows = []
    for found in _timed(calls, repeats)[1].values():
        totals = [f.timings["total"] for f in found]
        forward = [f.timings["encode"] + f.timings["score"] for f in found]
        passes = found[0].settings["forward_passes"]
        rows.append(
            {
                "masks": len(found[0].masks),
                "passes": passes,
                "seconds": statistics.median(totals),
                "outside_seconds": statistics.median(np.subtract(totals, forward)),
                "pass_seconds": statistics.median(forward) / passes,
            }
        )
    return rows


def draw(report: dict[str, Any]) -> Figure:
    """Four panels; one whose rows were not measured says so."""
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, (key, x, y, xlabel, ylabel) in zip(
        axes,
        (
            ("masks", "masks", "seconds", "masks K", "seconds"),
            ("channels", "channels", "seconds", "channels D", "seconds, embedding to masks"),
            ("size", "height", "pass_seconds", "input side, pixels", "seconds a forward pass"),
            ("pictures", "in_flight", "per_second", "pictures in flight", "explanations/s"),
        ),
        strict=True,
    ):
        rows = report[key]
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.plot([r[x] for r in rows], [r[y] for r in rows], "o-", color="#1f5fa8")
        if rows:
            axis.set_ylim(bottom=0)
        else:
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure


@click.command(cls=Benchmark)
@images_argument
@bundle_option
@click.option("--sized", multiple=True, help="The same model, exported for another input size.")
@click.option("--limit", default=6, show_default=True, help="Pictures, of those in flight.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=int, help="CPU threads.  [default: all cores]")
@out_option("Folder.")
def main(
    images: tuple[Path, ...],
    bundle: str,
    sized: tuple[str, ...],
    limit: int,
    repeats: int,
    threads: int | None,
    out: Path | None,
) -> None:
    """Measure how cost grows, on IMAGES, files or folders; 'demo' draws its own scenes."""
    if not images and bundle != DEMO:
        raise InputError("give IMAGES, files or folders: only the bundle 'demo' draws its own")
    pictures: list[Any] = list(find_pictures(images)[:limit]) or [
        make_scene(seed).image for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + limit)
    ]
    explainers = [load(path, threads=threads) for path in (bundle, *sized)]
    explainer = explainers[0]
    manifest = explainer.manifest
    report: dict[str, Any] = {
        "model": manifest.model_name,
        "precision": manifest.precision,
        "engine": explainer.session.engine,
        "pictures_in_flight_of": len(pictures),
        "repeats": repeats,
        "masks": with_masks(explainer, pictures[0], repeats),
        "channels": with_channels(manifest.grid, manifest.input_size, repeats),
        "size": with_size(explainers, pictures[0], repeats),
        "pictures": with_pictures(explainer, pictures, repeats),
    }
    for found in explainers:
        found.close()
    console = Console(width=None if Console().is_terminal else 100)
    for key in ("masks", "channels", "size", "pictures"):
        table = Table(box=None, pad_edge=False, title=f"with {key}", title_justify="left")
        for heading in report[key][0]:
            table.add_column(heading.replace("_", " "), justify="right")
        for row in report[key]:
            table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        console.print(table, highlight=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / "growth.png") as path:
            draw(report).savefig(path, format="png", dpi=110)
    finish(report, None if out is None else out / "growth.json", ("onnxruntime", "scipy"))


if __name__ == "__main__":
    main()
