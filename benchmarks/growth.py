"""How the cost of an explanation grows: with masks, channels, image size and pictures in flight.

``python -m benchmarks.growth PICTURE... --bundle DIR --out FOLDER`` prints a table, writes
``growth.json`` and draws ``growth.png``. ``--sized DIR`` (a bundle of the same model exported with
another ``--img-size``; may be given several times) adds the image sizes. The last line of the
output is JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from vitcx.evaluation.speed import describe_machine
from vitcx.evaluation.subjects import find_pictures
from vitcx.runtime.digests import replacing
from vitcx.runtime.explainer import Explainer, load
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
    return sorted((_explained(explainer, picture, repeats, **s) for s in settings), key=_masks)


def with_channels(grid: tuple[int, int], size: tuple[int, int], repeats: int) -> list[Row]:
    """By D: the seconds from an embedding to its K masks, without any model.

    The embeddings are drawn: 24 smooth patterns, each channel one of them and a little of others.
    """
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((24, *grid)).cumsum(axis=1).cumsum(axis=2)
    rows = []
    for channels in CHANNELS:
        weights = np.eye(24)[rng.integers(24, size=channels)]
        weights += 0.1 * rng.standard_normal(weights.shape)
        embedding = np.tensordot(weights, patterns, 1).astype(np.float32)
        found: list[int] = []

        def steps(embedding: Any = embedding, found: list[int] = found) -> None:
            masks = vit_masks(embedding, size)
            labels = cluster(cosine_distances(masks, size), 0.1)
            found.append(len(merge_masks(masks, labels, size, "renormalised")))

        rows.append({"channels": channels, "seconds": _median(steps, repeats), "masks": found[0]})
    return rows


def with_size(explainers: Sequence[Explainer], picture: Any, repeats: int) -> list[Row]:
    """By the model's input size: K, seconds, and seconds for each forward pass."""
    rows = []
    for explainer in explainers:
        row = _explained(explainer, picture, repeats)
        rows.append({"height": explainer.manifest.input_size[0], **row})
    return sorted(rows, key=lambda row: int(row["height"]))


def with_pictures(explainer: Explainer, pictures: list[Any], repeats: int) -> list[Row]:
    """By the pictures held at a time: explanations a second."""
    rows = []
    for limit in IN_FLIGHT:

        def stream(limit: int = limit) -> None:
            requests = [explainer.request(picture, None) for picture in pictures]
            with explainer.open_pipeline(limit=limit) as pipeline:
                for ticket in pipeline.stream(requests):
                    ticket.result()

        seconds = _median(stream, repeats)
        rows.append({"in_flight": limit, "per_second": len(pictures) / seconds})
    return rows


def _explained(explainer: Explainer, picture: Any, repeats: int, **settings: Any) -> Row:
    explainer.explain(picture, **settings)  # warm: makes the noise
    found = [explainer.explain(picture, **settings) for _ in range(repeats)]
    totals = [f.timings["total"] for f in found]
    forward = [f.timings["encode"] + f.timings["score"] for f in found]
    passes = found[0].settings["forward_passes"]
    return {
        "setting": settings or "defaults",
        "masks": len(found[0].masks),
        "passes": passes,
        "seconds": statistics.median(totals),
        "outside_seconds": statistics.median(np.subtract(totals, forward)),
        "pass_seconds": statistics.median(forward) / passes,
    }


def _masks(row: Row) -> int:
    return int(row["masks"])


def _median(work: Callable[[], object], repeats: int) -> float:
    work()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


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


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--bundle", default="demo", show_default=True)
@click.option("--sized", multiple=True, help="The same model, exported for another input size.")
@click.option("--limit", default=6, show_default=True, help="Pictures, of those in flight.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=int, help="CPU threads.  [default: all cores]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder.")
def main(
    images: tuple[Path, ...],
    bundle: str,
    sized: tuple[str, ...],
    limit: int,
    repeats: int,
    threads: int | None,
    out: Path | None,
) -> None:
    """Measure how cost grows, on IMAGES (files or folders)."""
    pictures: list[Any] = list(find_pictures(images)[:limit])
    explainers = [load(path, threads=threads) for path in (bundle, *sized)]
    explainer = explainers[0]
    manifest = explainer.manifest
    report: dict[str, Any] = {
        "machine": describe_machine(),
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
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (out / "growth.json").write_text(text + "\n", encoding="utf-8")
        with replacing(out / "growth.png") as path:
            draw(report).savefig(path, format="png", dpi=110)
    click.echo(json.dumps(report, ensure_ascii=False))


if __name__ == "__main__":
    main()
