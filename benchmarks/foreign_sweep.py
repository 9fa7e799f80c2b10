"""Which ONNX files become bundles: families, exporters, opsets, batches, simplifier, precision.

    python -m benchmarks.foreign_sweep --out OUT [--family vit --family swin]

Makes each file of a small random model, imports it, and prints a Markdown table; docs/own-onnx.md
has it. OUT keeps a line for each file: a run that was stopped goes on.
"""

from __future__ import annotations

import functools
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import torch

from benchmarks.foreign_graphs import FAMILIES, Recipe, halve, make_model, side_of, simplify, write
from vitcx.evaluation.records import Records
from vitcx.export import import_onnx
from vitcx.runtime.errors import VitcxError

# Of every family; the others are of one family, which shows what a form costs.
FORMS: dict[str, tuple[Recipe, str]] = {
    "dynamo 18": (Recipe("dynamo", 18), ""),
    "dynamo 18, batch 1": (Recipe("dynamo", 18, fixed_batch=True), ""),
    "TorchScript 17": (Recipe("torchscript", 17), ""),
    "TorchScript 17, batch 1": (Recipe("torchscript", 17, fixed_batch=True), ""),
}
MORE_OF = "vit"
MORE: dict[str, tuple[Recipe, str]] = {
    "TorchScript 12": (Recipe("torchscript", 12), ""),
    "TorchScript 14": (Recipe("torchscript", 14), ""),
    "TorchScript 17, all axes dynamic": (Recipe("torchscript", 17, all_axes=True), ""),
    "dynamo 20": (Recipe("dynamo", 20), ""),
    "dynamo 23": (Recipe("dynamo", 23), ""),
    "dynamo 18, onnxslim": (Recipe("dynamo", 18), "simplify"),
    "TorchScript 17, onnxslim": (Recipe("torchscript", 17), "simplify"),
    "TorchScript 17, float16": (Recipe("torchscript", 17), "halve"),
}
MADE, NOT_MADE = "works", "not exported"


def files(families: tuple[str, ...]) -> Iterator[tuple[str, str, Recipe, str]]:
    """(family, form, recipe, what is done to the file afterwards)."""
    for family in families:
        for form, (recipe, after) in (FORMS | (MORE if family == MORE_OF else {})).items():
            yield family, form, recipe, after


def try_file(model: torch.nn.Module, side: int, recipe: Recipe, after: str) -> str:
    """What became of a file: `MADE` and how far its scores are off, or why there is no bundle."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            write(model, path, (3, side, side), recipe)
            if after:
                {"simplify": simplify, "halve": halve}[after](path)
        except Exception as error:  # torch and the simplifier raise whatever they like
            return f"{NOT_MADE}: {type(error).__name__}"
        try:
            bundle = import_onnx(
                path, Path(folder) / "bundle", mean=(0.5,), std=(0.5,), crop=0.9,
                interpolation="bicubic", img_size=side if recipe.all_axes else None,
            )  # fmt: skip
        except VitcxError as error:
            return f"refused: {str(error).splitlines()[0][:160]}"
        return f"{MADE}, {bundle.manifest.parity['probabilities_max_abs']:.0e}"


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--family", "families", multiple=True, type=click.Choice(FAMILIES))
def main(out: Path, families: tuple[str, ...]) -> None:
    """Import small ONNX files of many forms and print what became of them."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    records = Records(out / "foreign.jsonl", {"torch": torch.__version__})
    model_of = functools.lru_cache(maxsize=1)(make_model)  # families come one after the other
    for family, form, recipe, after in files(families or FAMILIES):
        if (key := f"{family}|{form}") not in records:
            result = try_file(model_of(family), side_of(family), recipe, after)
            records.add(key, family=family, form=form, result=result)
            click.echo(f"{key}: {result}", err=True)
    click.echo("| family | form of the file | result |\n|---|---|---|")
    for record in records:
        click.echo(f"| {record['family']} | {record['form']} | {record['result']} |")
    made = sum(record["result"].startswith(MADE) for record in records)
    click.echo(f"\n{made} of {len(list(records))} files became bundles.")


if __name__ == "__main__":
    main()
