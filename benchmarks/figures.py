"""Figures of the documentation, on public-domain photographs of scikit-image.

    python -m benchmarks.figures --bundle DIR --checkpoint FILE --out FOLDER [--precisions]

draws ``methods.jpg`` (the maps of every method) and ``coverage.jpg`` (figure 6 of the paper:
coverage beside the map, not corrected and corrected). ``--records`` of `benchmarks.table1` draws
``curves.jpg`` too; ``--precisions`` draws ``precisions.jpg`` alone: maps by precision, with each
graph's own masks and with float32's, bf16 by its stand-in on the CPU.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from benchmarks.command import Benchmark, bundle_option, finish
from benchmarks.methods import METHODS, method
from benchmarks.models import open_model
from vitcx.evaluation.study import summarise
from vitcx.runtime.digests import replacing
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.pictures.preprocess import denormalise, prepare

FloatArray = NDArray[np.float32]
PHOTOGRAPHS = ("chelsea", "coffee", "astronaut", "rocket")
REDUCED = ("bf16", "int8")
MASKS = {"same": "its own masks", "fp32": "float32's masks"}


def shown(saliency: FloatArray) -> FloatArray:
    """A map as it is drawn: its lowest and highest 0.5 % clipped, 0 to 1.

    Without the clipping, single pixels of the gradient methods leave the rest black.
    """
    low, high = np.quantile(saliency, [0.005, 0.995])
    shown = (saliency - low) / max(float(high - low), 1e-12)
    return np.asarray(np.clip(shown, 0, 1), dtype=np.float32)


def _short(class_name: str) -> str:
    """A class name without what it says in brackets."""
    return class_name.partition(" (")[0].partition(",")[0]


def save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="jpg", dpi=100, pil_kwargs={"quality": 82})


def draw_grid(
    pictures: Mapping[str, Image.Image],
    maps: Mapping[str, Mapping[str, FloatArray]],
    path: Path,
    width: float = 1.05,
) -> None:
    """A row for each picture: itself, then its maps, each `width` inches wide."""
    columns = ["", *next(iter(maps.values()))]
    size = (width * len(columns), (width + 0.1) * len(pictures) + 0.1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(pictures), len(columns), squeeze=False)
    for row, (title, picture) in zip(axes, pictures.items(), strict=True):
        row[0].imshow(picture)
        row[0].set_title(title, fontsize=7)
        for place, (name, saliency) in zip(row[1:], maps[title].items(), strict=True):
            place.imshow(picture.convert("L"), cmap="gray")
            place.imshow(shown(saliency), cmap="inferno", alpha=0.75, vmin=0, vmax=1)
            place.set_title(name, fontsize=7)
        for place in row:
            place.set_axis_off()
    save(figure, path)


def draw_curves(records: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
    """Mean deletion and insertion curves over the pictures that all the methods have."""
    by_name = {n: {r["image"] for r in records if r["method"] == n} for n in names}
    common = set.intersection(*by_name.values())
    chosen = [dict(r) for r in records if r["method"] in by_name and r["image"] in common]
    found = summarise(sorted(chosen, key=lambda r: names.index(r["method"])))
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for place, side in zip(figure.subplots(1, 2), ("deletion", "insertion"), strict=True):
        for index, (name, row) in enumerate(found.items()):
            curve = row[f"{side}_curve"]
            share = np.linspace(0, 1, len(curve))
            style: dict[str, Any] = {"lw": 1.2}
            if name == "ViT-CX":
                style = {"color": "black", "lw": 2.5}
            style["ls"] = ("-", "--", ":")[index // 7]
            place.plot(share, curve, label=f"{name} {row[side]['mean']:.3f}", **style)
        better = "lower" if side == "deletion" else "higher"
        place.set_title(f"{side}, {len(common)} photographs: {better} is better", fontsize=9)
        place.set_xlabel(f"share of the pixels, {'deleted' if side == 'deletion' else 'inserted'}")
        place.legend(fontsize=6.5, frameon=False)
        place.set_ylabel("probability of the class, mean")
    save(figure, path)


def draw_coverage(picture: Image.Image, explained: Any, plain: Any, path: Path) -> None:
    """Picture, coverage, and the map without and with the correction for it."""
    figure = Figure(figsize=(8, 2.3), layout="constrained")
    places = figure.subplots(1, 4)
    places[0].imshow(picture)
    for place, values in zip(
        places[1:], (plain.coverage, plain.saliency[0], explained.saliency[0]), strict=True
    ):
        place.imshow(shown(values), cmap="inferno")
    titles = ("picture", "coverage ρ", "map, not corrected", "map, corrected")
    for place, title in zip(places, titles, strict=True):
        place.set_title(title, fontsize=9)
        place.set_axis_off()
    save(figure, path)


def photographs(explainer: Explainer) -> Iterator[tuple[str, FloatArray, int]]:
    """A title, the (3,H,W) pixels and the likeliest class of each of `PHOTOGRAPHS`."""
    from skimage import data

    names = explainer.manifest.class_names
    for name in PHOTOGRAPHS:
        pixels = prepare(Image.fromarray(getattr(data, name)()), explainer.manifest).pixels
        target = int(explainer.session.predict(pixels[None])[0].argmax())
        yield f"{name}: {_short(names[target])}", pixels, target


def draw_precisions(explainer: Explainer, path: Path) -> None:
    """Maps of the reduced graphs of a float32 bundle beside its own."""
    from benchmarks.precision import write_bundle
    from vitcx.export.precision.measuring import open_graph

    source = explainer.bundle
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        reduced = {
            f"{name}, {MASKS[encoder]}": stack.enter_context(
                open_graph(write_bundle(source, name, Path(scratch) / f"{name} {encoder}", encoder))
            )
            for name in REDUCED
            for encoder in MASKS
        }
        pictures, maps = {}, {}
        for title, pixels, target in photographs(explainer):
            pictures[title] = denormalise(pixels, source.manifest)
            maps[title] = {
                label: opened.explain(pixels, target).saliency[0]
                for label, opened in {"float32": explainer, **reduced}.items()
            }
        draw_grid(pictures, maps, path, width=1.7)


@click.command(cls=Benchmark)
@bundle_option
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The bundle's weights.")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="RISE-N: N masks.")
@click.option("--records", type=click.Path(path_type=Path), help="records.jsonl of table 1.")
@click.option("--curves", default="", help="Methods of the curves, commas.")
@click.option("--precisions", is_flag=True, help="Draw precisions.jpg alone.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder.")
def main(
    bundle: str,
    checkpoint: Path | None,
    methods: str,
    records: Path | None,
    curves: str,
    precisions: bool,
    out: Path,
) -> None:
    """Draw the figures."""
    warnings.simplefilter("ignore")
    out.mkdir(parents=True, exist_ok=True)
    if records is not None:
        lines = [json.loads(line) for line in records.read_text("utf-8").splitlines()[1:]]
        draw_curves(lines, curves.split(","), out / "curves.jpg")
    with open_model(bundle, checkpoint, allow_imprecise=precisions) as model:
        explainer = model.explainer
        if precisions:
            draw_precisions(explainer, out / "precisions.jpg")
            finish({"written": str(out)}, None)
            return
        pictures, maps = {}, {}
        for title, pixels, target in track(list(photographs(explainer)), "maps", transient=True):
            pictures[title] = denormalise(pixels, explainer.manifest)
            maps[title] = {m: method(m)(model, pixels, target)[0] for m in methods.split(",")}
            if len(maps) == 1:
                draw_coverage(
                    pictures[title],
                    explainer.explain(pixels, target),
                    explainer.explain(pixels, target, coverage_correction=False),
                    out / "coverage.jpg",
                )
    draw_grid(pictures, maps, out / "methods.jpg")
    finish({"written": str(out)}, None)


if __name__ == "__main__":
    main()
