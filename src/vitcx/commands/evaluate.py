"""`vitcx evaluate`: how faithful explanations are, on your pictures and your model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from vitcx.commands.options import SectionedCommand, bundle_option, check_out_folder, engine_options
from vitcx.commands.progress import count, progress_bar
from vitcx.commands.terminal import make_console, say, say_json
from vitcx.evaluation.boxes import read_annotations
from vitcx.evaluation.curves import CANVASES, DEFAULT_STEPS, check_settings
from vitcx.evaluation.metrics import METRICS, figures_of
from vitcx.evaluation.records import Records
from vitcx.evaluation.report import draw_curves, draw_metrics, draw_table, notes
from vitcx.evaluation.study import engine_method, run_study, summarise
from vitcx.evaluation.subjects import (
    Listed,
    Subject,
    list_pictures,
    read_subjects,
    scene_subjects,
)
from vitcx.evaluation.variants import RANDOM_ORDER, parse_variant
from vitcx.runtime.digests import replacing
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import load
from vitcx.sources.listing import list_all


@click.command("evaluate", cls=SectionedCommand)
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@bundle_option
@click.option(
    "--method",
    "variants",
    multiple=True,
    default=("vit-cx", "random-order"),
    show_default=True,
    help="What to measure: a preset's name, or vit-cx, score-cam, rise, occlusion, random-cx or "
    "random-order; with settings after a colon, such as vit-cx:estimator=fast,noise_std=0.2. "
    "Repeat it to compare.",
)
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    help="CSV file with the columns file, and class_index or x0, y0, x1, y1 or both; a line for "
    "each box.",
)
@click.option(
    "--explain-label", is_flag=True, help="Explain the annotated class, not the likeliest."
)
@click.option("--squash", is_flag=True, help="Resize without cropping, so that no box is cut.")
@click.option("--steps", default=DEFAULT_STEPS, show_default=True, help="Steps of each curve.")
@click.option(
    "--canvas",
    default="zero",
    show_default=True,
    type=click.Choice(CANVASES),
    help="What deleted pixels become: 0, the picture's mean colour, a blur of it, or what their "
    "neighbours suggest (road; slow).",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(tuple(METRICS)),
    help="Measure more of each map. "
    + "; ".join(f"{name}: {text}" for name, text in METRICS.items())
    + ". Repeat it for several.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Take the first N pictures.")
@click.option(
    "--scenes", default=20, show_default=True, help="Drawn scenes, where no IMAGES are given."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for figures, curves and resuming."
)
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def command(
    images: tuple[Path, ...],
    bundle: str,
    variants: tuple[str, ...],
    annotations: Path | None,
    explain_label: bool,
    squash: bool,
    steps: int,
    canvas: str,
    metrics: tuple[str, ...],
    limit: int | None,
    scenes: int,
    out: Path | None,
    engine: str,
    threads: int | None,
    batch_size: int | None,
    device: int | None,
    allow_imprecise: bool,
    as_json: bool,
) -> int:
    """Measure how faithful explanations are.

    Measures deletion and insertion on IMAGES: files, folders, quoted patterns, .csv or .parquet
    lists (columns path, target, x0, y0, x1, y1), or .tar shards. Where boxes are known, it measures
    pointing and localisation too. Use it to compare methods or settings on your own model. Without
    IMAGES, scenes are drawn, of which the embedded model knows the truth. With --out, a run that
    was stopped goes on where it was. A picture that cannot be read is left out, and the exit code
    is 2.

    \b
    Example:
      vitcx evaluate photos/ --bundle vit_base --method quick --method rise
    """
    check_settings(steps, canvas)
    if out is not None:
        check_out_folder(out)
    annotated = read_annotations(annotations) if annotations else {}
    items = list_all(images)[:limit]
    if explain_label and annotations is None and not any(item.target for item in items):
        raise InputError(
            "--explain-label needs --annotations, the CSV with the classes, or a list that has them"
        )
    failed: dict[str, str] = {}

    def refused(picture: Listed, error: InputError) -> None:
        if picture.name not in failed:
            failed[picture.name] = f"{error}"
            say(f"vitcx: {error}", err=True)

    with load(bundle, engine, threads, batch_size, allow_imprecise, device) as explainer:
        manifest = explainer.manifest
        listed = list_pictures(items, annotated, manifest.class_names, explain_label=explain_label)
        scene_list = [] if items else list(scene_subjects(manifest, limit or scenes))

        def subjects() -> Iterable[Subject]:
            """Read again for each method: all at once may be more than the memory holds."""
            if scene_list:
                return scene_list
            left = [one for one in listed if one.name not in failed]
            return read_subjects(
                left, manifest, explain_label=explain_label, squash=squash, refused=refused
            )

        context = {
            "model_sha256": manifest.model_sha256,
            "steps": steps,
            "canvas": canvas,
            "squash": squash,
            "explain_label": explain_label,
            **({"metrics": sorted(set(metrics))} if metrics else {}),
        }
        methods = {variant: engine_method(explainer, variant) for variant in variants}
        names = {one.name for one in listed} or {subject.name for subject in scene_list}
        if not names:
            raise InputError("no picture is left: --explain-label leaves out those not annotated")
        records = Records(out / "records.jsonl" if out else None, context)
        with progress_bar() as progress:
            bars = {name: progress.add_task(name, total=len(names)) for name in methods}
            run_study(
                explainer.session,
                methods,
                subjects,
                records,
                steps=steps,
                canvas=canvas,
                further={
                    variant: figures_of(
                        metrics,
                        explainer,
                        None if variant == RANDOM_ORDER else parse_variant(variant),
                        canvas,
                    )
                    for variant in variants
                },
                advance=lambda name, new: count(progress, bars[name], new=new),
            )
        provenance = {
            "model": manifest.model_name,
            "precision": manifest.precision,
            "engine": explainer.session.engine,
        }
    names -= failed.keys()
    if not names:
        raise InputError(f"none of {len(failed)} pictures could be read")
    summary = summarise(
        record for record in records if record["method"] in methods and record["image"] in names
    )
    report: dict[str, Any] = {"settings": context, "provenance": provenance, "methods": summary}
    if failed:
        report["failed"] = failed
    if out is not None:
        _write(out, report)
    if as_json:
        say_json(report)
        return 2 if failed else 0
    console = make_console()
    console.print(draw_table(summary))
    if (further := draw_metrics(summary)) is not None:
        console.print(further)
    for note in notes(summary):
        console.print(note, style="dim")
    if failed:
        say(f"vitcx: {len(failed)} of {len(names) + len(failed)} pictures are left out", err=True)
    return 2 if failed else 0


def _write(out: Path, report: dict[str, Any]) -> None:
    with replacing(out / "summary.json") as path:
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    from importlib.util import find_spec

    if find_spec("matplotlib") is not None:
        draw_curves(report["methods"], out / "curves.png")
