"""A bundle of random weights, for speed alone: of a model whose weights are not at hand.

    python -m benchmarks.gpu.bundle vit_base_patch16_224 --precision fp16 --out vit_base

The weights are timm's initial ones under a seed, so PyTorch can make the same model from the same
seed. What a reduced precision costs is not measured, as `vitcx export` does: with weights that say
nothing it would take minutes and say nothing. `vitcx.load` takes such a bundle with
allow_imprecise.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.command import Benchmark, finish
from vitcx.runtime.bundle import Bundle, read_bundle, write_manifest
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.manifest import ENCODERS, PRECISIONS


def random_model(name: str, seed: int) -> Any:
    """timm's model with its initial weights under a seed, in evaluation mode."""
    import torch

    from vitcx.export.timm_import import import_timm

    timm = import_timm()
    torch.manual_seed(seed)
    return timm.create_model(name, pretrained=False).eval()


def write_bundle(
    name: str, seed: int, precision: str, encoder: str, out: Path, attention: str = "plain"
) -> Bundle:
    """Export it in float32, compared with torch, and convert that."""
    from vitcx.export import export_model
    from vitcx.export.precision.formats import find_precision
    from vitcx.export.precision.reduced import write_reduced

    chosen = find_precision(precision)
    if chosen.write is None:
        return export_model(random_model(name, seed), out, report=print, attention=attention)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        exact = export_model(
            random_model(name, seed), Path(folder) / "fp32", report=print, attention=attention
        )
        print(f"converting to {precision}")
        write_reduced(chosen, exact.path, out, Path(folder), encoder)
    files = {file.name: sha256_of(file) for file in sorted(out.iterdir())}
    write_manifest(out, replace(exact.manifest, precision=precision, files=files, parity={}))
    return read_bundle(out)


@click.command(cls=Benchmark)
@click.argument("model")
@click.option("--seed", default=0, show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp16", show_default=True)
@click.option("--encoder", type=click.Choice(ENCODERS), default="fp32", help="same: smaller.")
@click.option("--attention", type=click.Choice(("plain", "fused")), default="plain")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder.")
def main(model: str, seed: int, precision: str, encoder: str, attention: str, out: Path) -> None:
    """Write a bundle of MODEL, a name of timm's, with random weights."""
    bundle = write_bundle(model, seed, precision, encoder, out, attention)
    size = sum(file.stat().st_size for file in bundle.path.iterdir())
    finish({"written": str(bundle.path), "megabytes": round(size / 1e6, 1)}, None)


if __name__ == "__main__":
    main()
