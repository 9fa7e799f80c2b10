"""`vitcx export`: a model, or an ONNX file, becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.text import Text

from vitcx.commands.export_report import tell_of_bundle
from vitcx.commands.export_values import parse_crop, parse_layer, parse_numbers, parse_size
from vitcx.commands.plan import build_and_tell
from vitcx.commands.terminal import make_console, plain, say
from vitcx.export import export_model, import_onnx
from vitcx.export.foreign.importing import is_onnx_file
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.capabilities import check_capabilities
from vitcx.runtime.engines.tensorrt.library import FLAVOURS, find_library
from vitcx.runtime.engines.tensorrt.profiles import Shapes
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import (
    ENCODERS,
    HEADS,
    INTERPOLATIONS,
    LAYERS,
    PRECISIONS,
)

# Options that an ONNX file leaves no choice of.
_TORCH_OPTIONS = (
    "checkpoint",
    "weights",
    "num_classes",
    "labels",
    "precision",
    "encoder",
    "attention",
    "teams",
)


def _refuse_for_onnx(ctx: click.Context) -> None:
    """Options that go with a model of PyTorch, and were given with an ONNX file."""
    for param in ctx.command.params:
        given = param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
        if given and param.name in _TORCH_OPTIONS:
            raise InputError(
                f"{param.opts[0]} goes with a PyTorch model: an ONNX file has its weights and its "
                "form already"
            )


@click.command("export")
@click.argument("model", is_eager=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Your weights: .safetensors, .pth, .ckpt or .pth.tar.  [default: download them]",
)
@click.option(
    "--weights",
    type=click.Choice(("ema", "raw")),
    help="Which weights of a checkpoint that holds both: averaged or trained.  [default: ema]",
)
@click.option(
    "--num-classes",
    type=click.IntRange(min=1),
    help="Number of classes.  [default: that of the weights]",
)
@click.option(
    "--class-names",
    "names_file",
    type=click.Path(path_type=Path),
    help="File with the class names: JSON, YAML, CSV, or one name a line.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="With clip:MODEL: file with the classes in words, such as 'a photo of a dog', one a line.",
)
@click.option(
    "--img-size",
    callback=parse_size,
    metavar="H[xW]",
    help="Input size in pixels.  [default: the model's]",
)
@click.option(
    "--layer",
    callback=parse_layer,
    metavar=f"[{'|'.join(LAYERS)}]",
    help="Embedding: the normalisation before the block's attention (the default where there is "
    "one), the attention, or the block's output. Of an ONNX file the name of a node too.",
)
@click.option(
    "--stage",
    type=int,
    help="Stage, counted from 0.  [default: the one nearest to patches of 16 pixels]",
)
@click.option(
    "--block",
    type=int,
    default=-1,
    show_default=True,
    help="Block of the stage or model, counted from 0, or from the end if negative.",
)
@click.option(
    "--head",
    type=click.Choice(list(HEADS)),
    help="What the outputs are: classes of which one is true (softmax), labels that are each true "
    "or not (sigmoid), one logit of yes or no (binary), values (regression), or features (none).  "
    "[default: as the model says, or softmax]",
)
@click.option(
    "--reference",
    "references",
    multiple=True,
    type=click.Path(path_type=Path),
    help="With --head none: explain the similarity to this picture. Repeat it for several.",
)
@click.option(
    "--mean",
    callback=parse_numbers,
    metavar="N[,N...]",
    help="Mean that is subtracted from values in [0, 1], one for all channels or one for each.  "
    "[default: the model's]",
)
@click.option(
    "--std",
    callback=parse_numbers,
    metavar="N[,N...]",
    help="Standard deviation that they are divided by.  [default: the model's]",
)
@click.option(
    "--interpolation",
    type=click.Choice(INTERPOLATIONS),
    help="Filter that resizes pictures.  [default: the model's]",
)
@click.option(
    "--crop",
    callback=parse_crop,
    metavar="SHARE|squash",
    help="Share of the resized picture that the centre crop keeps; squash keeps the whole picture.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Precision of the graph. Export measures what a reduced one costs, on --check-image.",
)
@click.option(
    "--encoder",
    type=click.Choice(ENCODERS),
    default="fp32",
    show_default=True,
    help="What gives the masks of a reduced precision: a float32 graph, or the same graph.",
)
@click.option(
    "--attention",
    type=click.Choice(("plain", "fused")),
    default="plain",
    show_default=True,
    help="fused writes each attention as one ONNX node: for GPU engines; slower on a CPU.",
)
@click.option(
    "--teams/--no-teams",
    default=None,
    help="Write the graph that scores teams of patches by their tokens.  [default: if the model "
    "allows it]",
)
@click.option(
    "--check-image",
    "check_images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Picture on which the bundle is compared with the model. Repeat it for several.",
)
@click.option(
    "--engine",
    type=click.Choice(list(FLAVOURS)),
    help="Also build a plan for this engine, OUT.plan: see 'vitcx plan build'.",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    help="Compute capability of the plan's GPU, such as 8.9. Repeat it for several.",
)
@click.option("--output", help="With an ONNX file: name of the output with the answers.")
@click.option("--force", is_flag=True, help="Replace a bundle at --out.")
def command(
    model: str,
    out: Path,
    checkpoint: Path | None,
    weights: str | None,
    num_classes: int | None,
    names_file: Path | None,
    labels: Path | None,
    img_size: tuple[int, int] | None,
    layer: str | None,
    stage: int | None,
    block: int,
    head: str | None,
    references: tuple[Path, ...],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    interpolation: str | None,
    crop: float | str | None,
    precision: str,
    encoder: str,
    attention: str,
    teams: bool | None,
    check_images: tuple[Path, ...],
    engine: str | None,
    capabilities: tuple[str, ...],
    output: str | None,
    force: bool,
) -> None:
    """Make a bundle of MODEL: the folder that every other command takes.

    MODEL is the name of a timm model, such as deit_tiny_patch16_224; torchvision:NAME, hf:NAME or
    clip:NAME; a folder of Hugging Face transformers; or an ONNX file. --checkpoint takes your own
    weights for a model of timm or torchvision. The bundle is compared with the model before it is
    kept. Needs the extra `export`, or `onnx` for an ONNX file; explaining does not.

    \b
    Examples:
      vitcx export vit_base_patch16_224 --out vit_base
      vitcx export deit_small_patch16_224 --checkpoint mine.pth --out mine
      vitcx export my.onnx --mean 0.5 --std 0.5 --crop 0.9 \\
          --interpolation bicubic --out mine
    """
    options = BuildOptions(compute_capabilities=capabilities)
    if (engine is None) != (not capabilities):
        raise InputError("--engine and --compute-capability go together: a plan is for a GPU")
    if engine is not None:
        check_capabilities(find_library(engine), capabilities)  # before the work, not after it
    context = click.get_current_context()
    common: dict[str, Any] = {
        "class_names": names_file,
        "img_size": img_size,
        "layer": layer,
        "stage": stage,
        "block": block,
        "head": head,
        "references": references,
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "crop": crop,
        "check_images": check_images,
        "force": force,
    }
    from_onnx = is_onnx_file(model)
    if from_onnx:
        _refuse_for_onnx(context)
    elif output is not None:
        raise InputError("--output goes with an ONNX file")
    with make_console(stderr=True).status("starting") as status:
        # Nothing where stderr is no terminal: --verbose logs the steps.
        common["report"] = lambda step: status.update(Text(plain(step)))
        if from_onnx:
            bundle = import_onnx(model, out, output=output, **common)
        else:
            bundle = export_model(
                model,
                out,
                checkpoint=checkpoint,
                num_classes=num_classes,
                weights=weights,
                labels=labels,
                precision=precision,
                encoder=encoder,
                attention=attention,
                teams=teams,
                **common,
            )
    tell_of_bundle(bundle, teams_asked=teams is not None)
    if str(out) == "demo":
        say("give it as './demo': 'demo' alone is the embedded model")
    if engine is not None:
        plan = Path(f"{bundle.path.resolve()}.plan")
        build_and_tell(bundle, plan, engine, Shapes().batch_size, options)
