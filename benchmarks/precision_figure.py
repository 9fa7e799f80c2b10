"""The picture of docs/precision.md: maps by precision, with each graph's own masks and float32's.

``python -m benchmarks.precision_figure --bundle DIR --out FILE.jpg``, DIR being a float32 bundle.
bf16 is its stand-in on the CPU. The photographs are scikit-image's, in the public domain.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from benchmarks.figures import draw_grid, photographs
from benchmarks.precision import write_bundle
from vitcx.export.precision.measuring import open_graph
from vitcx.runtime.bundle import ENCODERS, read_bundle
from vitcx.runtime.pictures.preprocess import denormalise

PRECISIONS = ("bf16", "int8")
MASKS = {"same": "its own masks", "fp32": "float32's masks"}


@click.command()
@click.option("--bundle", required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(bundle: Path, out: Path) -> None:
    """Draw the maps."""
    source = read_bundle(bundle)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        reference = stack.enter_context(open_graph(source))
        reduced = {
            f"{name}, {MASKS[encoder]}": stack.enter_context(
                open_graph(write_bundle(source, name, Path(scratch) / f"{name} {encoder}", encoder))
            )
            for name in PRECISIONS
            for encoder in reversed(ENCODERS)
        }
        pictures, maps = {}, {}
        for title, pixels, target in photographs(reference):
            pictures[title] = denormalise(pixels, source.manifest)
            maps[title] = {
                label: explainer.explain(pixels, target).saliency[0]
                for label, explainer in {"float32": reference, **reduced}.items()
            }
        draw_grid(pictures, maps, out, width=1.7)
    click.echo(out)


if __name__ == "__main__":
    main()
