"""`vitcx plan`: TensorRT plans built ahead of time, and taken into the cache of another machine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import click
from rich.progress import TaskID

from vitcx.commands.progress import progress_bar
from vitcx.commands.terminal import say
from vitcx.runtime.bundle import Bundle, read_bundle
from vitcx.runtime.engines.tensorrt.ahead import AheadPlan, build_ahead, take_plan
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.library import FLAVOURS, find_library
from vitcx.runtime.engines.tensorrt.plan import plan_graphs
from vitcx.runtime.engines.tensorrt.profiles import ENCODE, SCORE, TEAMS, Shapes
from vitcx.runtime.engines.tensorrt.progress import Progress
from vitcx.runtime.explainer import find_bundle

log = logging.getLogger("vitcx")


@click.group("plan")
def command() -> None:
    """Build TensorRT plans ahead of time, and take them into a machine's cache.

    An engine builds its plan when it is first opened, which takes minutes, and keeps it. Take this
    command to do it beforehand, on a machine that need not have the GPU.

    \b
    Example:
      vitcx plan build vit_base --compute-capability 8.9 --out vit_base.plan
    """


@command.command("build")
@click.argument("bundle")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    required=True,
    help="Compute capability of the plan's GPU, such as 8.9. Repeat it for several.",
)
@click.option(
    "--engine",
    default="tensorrt-rtx",
    show_default=True,
    type=click.Choice(list(FLAVOURS)),
    help="Engine that will run the plan.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=Shapes().batch_size,
    show_default=True,
    help="Rows of a mask batch. Open the engine with the same number.",
)
@click.option(
    "--tf32", is_flag=True, help="Compute float32 products in TF32: faster, and less exact."
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="How hard the builder tries.  [default: the library's]",
)
def build_command(
    bundle: str,
    out: Path,
    capabilities: tuple[str, ...],
    engine: str,
    batch_size: int,
    tf32: bool,
    optimization_level: int | None,
) -> None:
    """Build the plan of BUNDLE for GPUs that need not be in this machine.

    \b
    Example:
      vitcx plan build vit_base --compute-capability 8.9 --out vit_base.plan
    """
    options = BuildOptions(
        tf32=tf32, optimization_level=optimization_level, compute_capabilities=capabilities
    )
    build_and_tell(read_bundle(find_bundle(bundle)), out, engine, batch_size, options)


@command.command("take")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    required=True,
    type=click.Path(path_type=Path),
    help="The bundle the plan was built from.",
)
@click.option("--sha256", required=True, help="The digest that 'vitcx plan build' printed.")
def take_command(plan: Path, bundle: str, sha256: str) -> None:
    """Put PLAN, built elsewhere, into this user's cache, where the engine finds it.

    A plan is executable code: give the digest that the person who built it told you, not one that
    lies beside it.
    """
    keys = take_plan(plan, read_bundle(find_bundle(bundle)), sha256.lower())
    first = keys[0]
    shapes = Shapes(**first.shapes)
    uses = {
        ENCODE: f"encoding up to {shapes.encode_images} images",
        SCORE: f"mask batches of up to {shapes.batch_size}",
        TEAMS: f"batches of up to {shapes.batch_size} teams",
    }
    for_what = " and ".join(uses[name] for name in shapes.profiles if name in uses)
    say(
        f"taken: {first.flavour} {first.version}, {first.precision}, {for_what}, for compute "
        f"capability {', '.join(key.compute_capability for key in keys)}"
    )


def build_and_tell(
    bundle: Bundle, out: Path, engine: str, batch_size: int, options: BuildOptions
) -> None:
    """Build a bundle's plans ahead of time with a progress bar, and print what came of it.

    The plan of another graph than ``model.onnx`` goes to ``STEM.GRAPH.SUFFIX``, such as
    ``vit_base.teams.plan``.
    """
    library = find_library(engine)
    for graph, shapes in plan_graphs(library, bundle, Shapes.of_session(batch_size)):
        beside = out.with_name(f"{out.stem}.{Path(graph.graph_name).stem}{out.suffix}")
        with _build_progress() as report:
            made = build_ahead(
                graph,
                out if graph.graph_name == bundle.graph_name else beside,
                engine,
                shapes,
                options,
                report,
            )
        _tell(made, graph.manifest.precision)


def _tell(made: AheadPlan, precision: str) -> None:
    told = made.report
    say(
        f"{made.path}: {told.library}, {precision}, for compute capability "
        f"{', '.join(told.targets)}, {told.bytes / 1e6:.1f} MB in {told.seconds:.1f} s"
    )
    say(f"  {told.attention_in_words()}")
    for warning in told.warnings:
        say(f"  warning: {warning}")
    say(f"  sha256 {made.digest}")


@contextlib.contextmanager
def _build_progress() -> Iterator[Progress]:
    """A bar for each phase under way; their names in the log."""
    tasks: dict[str, TaskID] = {}
    with progress_bar() as bar:

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                log.info("%s", phase)
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)
            if done >= total:
                bar.remove_task(tasks.pop(phase))

        yield report
