"""`vitcx export`: a timm model becomes a bundle."""

from __future__ import annotations

import re
from pathlib import Path

import click
from rich.text import Text

from vitcx.commands.plan import build_and_tell
from vitcx.commands.terminal import make_console, plain, say
from vitcx.export import export_model
from vitcx.runtime.bundle import ENCODERS, LAYERS, PRECISIONS
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.capabilities import check_capabilities
from vitcx.runtime.engines.tensorrt.library import FLAVOURS, find_library
from vitcx.runtime.engines.tensorrt.profiles import Shapes
from vitcx.runtime.errors import InputError
from vitcx.runtime.precision_limits import precision_problem


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """H or HxW as (H, W)."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", value)
    if match is None:
        raise click.BadParameter(f"'{value}': expected a side or HxW, such as 384 or 224x320")
    return int(match[1]), int(match[2] or match[1])


@click.command("export")
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Weights (.safetensors, .pth); without it they come from timm's hub.",
)
@click.option("--num-classes", type=click.IntRange(min=1), help="Default: the weights' own.")
@click.option(
    "--class-names",
    "names_file",
    type=click.Path(path_type=Path),
    help="File with a JSON list, or one name a line.",
)
@click.option(
    "--img-size",
    callback=_size,
    metavar="H[xW]",
    help="Input size in pixels; default: the model's own.",
)
@click.option(
    "--layer",
    type=click.Choice(LAYERS),
    default="norm1",
    show_default=True,
    help="Embedding: the block's input normalisation, its attention, or its output.",
)
@click.option("--stage", type=int, help="Swin: stage, from 0; default: the second-to-last.")
@click.option(
    "--block",
    type=int,
    default=-1,
    show_default=True,
    help="Block in the stage or model, from 0, negative from the end.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Of the graph; what a reduced one costs is measured, on --check-image.",
)
@click.option(
    "--encoder",
    type=click.Choice(ENCODERS),
    default="fp32",
    show_default=True,
    help="Of a reduced precision; same: no float32 graph beside it, and other masks.",
)
@click.option(
    "--attention",
    type=click.Choice(("plain", "fused")),
    default="plain",
    show_default=True,
    help="fused: one ONNX node each, for GPU engines; slower on the CPU.",
)
@click.option(
    "--teams/--no-teams",
    default=None,
    help="Write the graph that scores teams of patches by their tokens; default: where the model "
    "allows it.",
)
@click.option(
    "--check-image",
    "check_images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Picture to compare with torch on, besides drawn ones; may be repeated.",
)
@click.option(
    "--engine",
    type=click.Choice(list(FLAVOURS)),
    help="Build its plan too, to OUT.plan: see 'vitcx plan build'.",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    help="Of the GPU that is to run the plan, such as 8.9; may be repeated.",
)
@click.option("--force", is_flag=True, help="Replace a bundle at --out.")
def command(
    model: str,
    out: Path,
    checkpoint: Path | None,
    num_classes: int | None,
    names_file: Path | None,
    img_size: tuple[int, int] | None,
    layer: str,
    stage: int | None,
    block: int,
    precision: str,
    encoder: str,
    attention: str,
    teams: bool | None,
    check_images: tuple[Path, ...],
    engine: str | None,
    capabilities: tuple[str, ...],
    force: bool,
) -> None:
    """Turn a timm MODEL into a bundle: ONNX graph and manifest.

    MODEL is a name such as deit_tiny_patch16_224. Needs the extra `export`.
    """
    options = BuildOptions(compute_capabilities=capabilities)
    if (engine is None) != (not capabilities):
        raise InputError("--engine and --compute-capability go together: a plan is for a GPU")
    if engine is not None:
        check_capabilities(find_library(engine), capabilities)  # before the work, not after it
    with make_console(stderr=True).status("starting") as status:
        bundle = export_model(
            model,
            out,
            checkpoint=checkpoint,
            num_classes=num_classes,
            class_names=names_file,
            img_size=img_size,
            layer=layer,
            stage=stage,
            block=block,
            precision=precision,
            encoder=encoder,
            attention=attention,
            teams=teams,
            check_images=check_images,
            force=force,
            # Nothing where stderr is no terminal: --verbose logs the steps.
            report=lambda step: status.update(Text(plain(step))),
        )
    m = bundle.manifest
    megabytes = sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6
    say(
        f"{bundle.path}: {m.model_name}, {m.input_size[0]}x{m.input_size[1]}, "
        f"{m.num_classes} classes, embedding {m.channels}x{m.grid[0]}x{m.grid[1]} "
        f"at {m.layer_path}, {megabytes:.1f} MB"
    )
    say(
        f"against torch on {m.parity['images']:.0f} images: probabilities within "
        f"{m.parity['probabilities_max_abs']:.1e}, embedding within "
        f"{m.parity['embedding_max_abs']:.1e} (rms {m.parity['embedding_rms_relative']:.1e} "
        "of its own)"
    )
    if not bundle.has_teams and teams is None:
        click.echo("this model needs every patch in place: teams are asked in pixels")
    if figures := m.precision_figures:
        say(
            f"{m.precision} against fp32 on {figures['images']:.0f} images, of which "
            f"{figures['photographs']:.0f} photographs: the same likeliest class in "
            f"{figures['top1_agreement']:.0%}, rank correlation of the maps "
            f"{figures['rank_correlation_median']:.3f} in the median "
            f"({figures['rank_correlation_min']:.3f} at the least), deletion "
            f"{figures['deletion_change']:+.4f}, insertion {figures['insertion_change']:+.4f}"
        )
        if not figures["photographs"]:
            say("give photographs with --check-image: drawn scenes say less")
    if problem := precision_problem(m):
        say(f"vitcx will refuse it without --allow-imprecise: {problem}")
    if str(out) == "demo":
        say("give it as './demo': 'demo' alone is the embedded model")
    if engine is not None:
        plan = Path(f"{bundle.path.resolve()}.plan")
        build_and_tell(bundle, plan, engine, Shapes().batch_size, options)
