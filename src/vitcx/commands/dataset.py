"""`vitcx dataset`: a data set into Parquet shards."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.progress import TextColumn, TimeElapsedColumn

from vitcx.commands.explain import parse_targets
from vitcx.commands.options import (
    SectionedCommand,
    bundle_option,
    engine_options,
    given_settings,
    setting_options,
)
from vitcx.commands.progress import progress_bar, skip
from vitcx.commands.terminal import say, say_json
from vitcx.dataset.job import OVERLAYS_NAME, Job, Output
from vitcx.dataset.ray_job import job_arguments, run_on_ray
from vitcx.dataset.shards import DTYPES, RESOLUTIONS, import_pyarrow
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import load
from vitcx.sources.listing import list_items


@click.command("dataset", cls=SectionedCommand)
@click.argument("source")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option(
    "--resume", is_flag=True, help="Go on with the job that --out holds, where it stopped."
)
@bundle_option
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Class to explain: a name, an index, or top5. Repeat it for several. The targets in a "
    "list go first.  [default: top1]",
)
@click.option(
    "--resolution",
    default="patch",
    show_default=True,
    type=click.Choice(RESOLUTIONS),
    help="Of the stored maps: the model's patch grid, or every pixel of its input.",
)
@click.option(
    "--dtype",
    default="float16",
    show_default=True,
    type=click.Choice(DTYPES),
    help="Of the stored maps.",
)
@click.option(
    "--shard-size",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures in each Parquet file.",
)
@click.option("--overlays", is_flag=True, help="Also write an overlay PNG for each picture.")
@engine_options
@setting_options
@click.option(
    "--ray",
    "on_ray",
    is_flag=True,
    help="Run on Ray: on the cluster this machine belongs to, or a local one.",
)
@click.option(
    "--ray-workers", default="1:1", show_default=True, help="Fewest and most actors, such as 1:8."
)
@click.option("--ray-gpus", default=0.0, show_default=True, help="GPUs of each actor.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def command(
    source: str,
    out: Path,
    resume: bool,
    bundle: str,
    targets: tuple[str, ...],
    resolution: str,
    dtype: str,
    shard_size: int,
    overlays: bool,
    engine: str,
    threads: int | None,
    batch_size: int | None,
    device: int | None,
    allow_imprecise: bool,
    on_ray: bool,
    ray_workers: str,
    ray_gpus: float,
    as_json: bool,
    **settings: Any,
) -> int:
    """Explain every picture of SOURCE into Parquet files in --out.

    Use it for more pictures than you want to look at. A job that was stopped goes on with
    --resume.

    SOURCE is a folder, a quoted pattern, a .csv or .parquet list (columns path, target, x0, y0, x1,
    y1), or WebDataset .tar shards. A picture that cannot be read becomes a row with an error. The
    exit code is 0 if every picture was explained, and 2 if some were not.

    \b
    Examples:
      vitcx dataset photos/ --bundle vit_base --out shards
      vitcx dataset "train-*.tar" --bundle vit_base --out shards --resume
    """
    import_pyarrow()
    if on_ray and device is not None:
        raise InputError("with --ray each worker has a GPU from Ray: leave --device out")
    items = list_items(source, apart_from=out / OVERLAYS_NAME)
    output = Output(resolution, dtype, shard_size, overlays)
    wanted = parse_targets(targets)
    chosen = given_settings(settings)
    start = time.monotonic()
    with (
        load(bundle, engine, threads, batch_size, allow_imprecise, device) as explainer,
        Job(explainer, items, out, output, targets=wanted, resume=resume, **chosen) as job,
    ):
        columns = (TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
        with progress_bar(*columns, transient=False) as progress:
            bar = progress.add_task("explaining", total=len(items), fresh=0, rate="")

            def advance(pictures: int, new: bool) -> None:
                if not new:
                    skip(progress, bar, pictures)
                    return
                fresh = progress.tasks[0].fields["fresh"] + pictures
                rate = f"{fresh / max(time.monotonic() - start, 1e-9):.1f}/s"
                progress.update(bar, advance=pictures, fresh=fresh, rate=rate)

            if on_ray:
                summary = run_on_ray(
                    job,
                    {
                        "bundle": bundle if bundle == "demo" else str(Path(bundle).resolve()),
                        "engine": explainer.session.engine,
                        "threads": threads,
                        "batch_size": batch_size,
                        "allow_imprecise": allow_imprecise,
                    },
                    job_arguments(items, out, output, wanted, chosen),
                    workers=_workers(ray_workers),
                    gpus_per_worker=ray_gpus,
                    progress=advance,
                )
            else:
                summary = job.run(advance)
    seconds = time.monotonic() - start
    if as_json:
        say_json({**asdict(summary), "seconds": round(seconds, 3), "out": str(out)})
    else:
        fresh = summary.pictures - summary.already_done
        say(
            f"{out}: {summary.explained} of {summary.pictures} pictures explained, "
            f"{summary.failed} failed, {summary.already_done} were there already; "
            f"{summary.shards} shards, {seconds:.1f} s, {fresh / max(seconds, 1e-9):.2f} pictures/s"
        )
    return 2 if summary.failed else 0


def _workers(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    try:
        limits = int(least), int(most or least)
    except ValueError:
        limits = 0, 0
    if not 1 <= limits[0] <= limits[1]:
        raise click.UsageError(f"--ray-workers is {text!r}: give LEAST:MOST, such as 1:8")
    return limits
