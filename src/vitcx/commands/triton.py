"""`vitcx triton`: a bundle as models of a Triton server"""

from __future__ import annotations

from pathlib import Path

import click

from vitcx.commands.terminal import say
from vitcx.export.folders import folder_in_place_of
from vitcx.runtime.bundle import read_bundle
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import find_bundle
from vitcx.serving.triton_repository import CONFIG_NAME, model_name, models_of, write_model


@click.command("triton")
@click.argument("bundle")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Model repository to write into. Other models in it stay.",
)
@click.option("--name", help="The model's name on Triton.  [default: the bundle's]")
@click.option(
    "--max-batch-size",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Most pictures in one pass.",
)
@click.option(
    "--all-graphs",
    is_flag=True,
    help="Also write NAME_encoder (embeddings) and, if the bundle has it, NAME_teams.",
)
@click.option("--force", is_flag=True, help="Replace models of the same names.")
def command(
    bundle: str, out: Path, name: str | None, max_batch_size: int, all_graphs: bool, force: bool
) -> int:
    """Write BUNDLE into a model repository of Triton, for its ONNX Runtime backend.

    The model takes normalised pictures and gives the scores of all classes. It can be the predictor
    beside 'vitcx serve', which explains the same bundle.

    \b
    Example:
      vitcx triton vit_base --name birds --out repository
      tritonserver --model-repository repository
    """
    source = read_bundle(find_bundle(bundle))
    models = models_of(
        source, model_name(source.manifest, name), max_batch_size, all_graphs=all_graphs
    )
    if out.exists() and not out.is_dir():
        raise InputError(f"'{out}' is a file: choose another folder")
    for model in models:
        _check_folder(out / model.name, force)
    for model in models:
        with folder_in_place_of(out / model.name) as folder:
            write_model(model, folder, source.manifest)
        gives = ", ".join(tensor.name for tensor in model.interface.outputs)
        say(f"{out / model.name}: {gives}")
    return 0


def _check_folder(folder: Path, force: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not force:
        raise InputError(f"'{folder}' is there already: give another --name, or --force")
    if not (folder / CONFIG_NAME).is_file():
        raise InputError(f"'{folder}' is no model of Triton: give another --name or --out")
