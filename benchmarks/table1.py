"""Tables 1 and 2 of the paper: every method, every variant, on your pictures and your model.

    python -m benchmarks.table1 PHOTOGRAPHS --bundle DIR --checkpoint FILE --out OUT

The embedded model, ``--bundle demo``, needs no more than ``--out``: it draws scenes, each object a
picture of its own, with the truth known. A line for each picture and method is kept in OUT, and a
run that was stopped goes on.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.command import Benchmark, bundle_option, finish, images_argument
from benchmarks.methods import (
    AUTHORS,
    METHODS,
    SHAPLEY,
    VARIANTS,
    Explain,
    Model,
    NotApplicable,
    authors_method,
    method,
    of_engine,
    shapley_method,
)
from benchmarks.models import DEMO, open_model
from vitcx.commands.progress import count
from vitcx.evaluation.boxes import read_annotations
from vitcx.evaluation.curves import CANVASES, DEFAULT_STEPS
from vitcx.evaluation.metrics import figures_of
from vitcx.evaluation.records import Records
from vitcx.evaluation.report import draw_metrics, notes
from vitcx.evaluation.study import (
    Answer,
    AnswerMaker,
    paired,
    random_order,
    run_study,
    summarise,
)
from vitcx.evaluation.subjects import Subject, find_pictures, picture_subjects, scene_subjects
from vitcx.runtime.errors import InputError

RANDOM = "random order"
REFERENCE = "ViT-CX"
PAPER = Path(__file__).parent / "results" / "paper_tables.json"
# The paper's columns, by how timm's names of its models begin.
COLUMNS = {
    "vit_base_patch16_224": "ViT-B",
    "deit_base_distilled_patch16_224": "DeiT-B",
    "swin_base_patch4_window7_224": "Swin-B",
}


def answers_by(model: Model, explain: Explain) -> Callable[[Iterable[Subject]], Iterator[Answer]]:
    """A method as `run_study` wants it; the class is the likeliest where none is given."""

    def answers(subjects: Iterable[Subject]) -> Iterator[Answer]:
        for subject in subjects:
            target = subject.target
            if target is None:
                target = int(model.explainer.session.predict(subject.pixels[None])[0].argmax())
            saliency, facts = explain(model, subject.pixels, target)
            yield Answer(subject, target, np.ascontiguousarray(saliency, np.float32), facts)

    return answers


def chosen_calls(
    methods: str, variants: str, random_masks: int, authors: str | None, model: Model
) -> dict[str, Explain]:
    """Methods, variants of table 2 and the authors' code, by the names of their rows."""
    calls = {name: method(name) for name in filter(None, methods.split(","))}
    for variant in VARIANTS if variants == "all" else filter(None, variants.split(",")):
        if variant not in VARIANTS:
            raise InputError(f"'{variant}' is no variant of table 2: {', '.join(VARIANTS)}")
        settings = dict(VARIANTS[variant])
        if settings.get("method") == "random-cx":
            settings["mask_count"] = random_masks
        calls.setdefault(variant, of_engine(**settings))
    if authors is not None:
        calls[AUTHORS] = authors_method(authors, model.explainer.manifest.distance_threshold)
    return calls


def measure(
    model: Model,
    subjects: list[Subject],
    calls: Mapping[str, Explain],
    records: Records,
    *,
    steps: int,
    canvas: str,
    metrics: Sequence[str] = (),
) -> list[str]:
    """Judge what `records` lacks; returns the names of those that cannot explain the model."""
    session = model.explainer.session
    makers: dict[str, AnswerMaker] = {n: answers_by(model, call) for n, call in calls.items()}
    makers[RANDOM] = lambda asked: random_order(session, asked)
    further = figures_of(metrics, model.explainer, None, canvas)
    not_applicable = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for label, maker in makers.items():
            bar = progress.add_task(label, total=len(subjects))

            def advance(_: str, new: bool, bar: Any = bar) -> None:
                count(progress, bar, new=new)

            try:
                run_study(
                    session,
                    {label: maker},
                    lambda: subjects,
                    records,
                    steps=steps,
                    canvas=canvas,
                    further={label: further},
                    advance=advance,
                )
            except NotApplicable:
                not_applicable.append(label)
    return not_applicable


@click.command(cls=Benchmark)
@images_argument
@bundle_option
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The bundle's weights.")
@click.option("--annotations", "--labels", type=click.Path(path_type=Path), help="CSV.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="RISE-N: N masks.")
@click.option("--variants", default="", help="Of table 2, commas, or 'all'.")
@click.option("--random-masks", default=5000, show_default=True, help="Of variant 2.")
@click.option("--authors-code", help="FILE.py:FUNCTION of a checkout of the authors' repository.")
@click.option("--shapley", type=click.Path(path_type=Path), help="Weights, for 'demo'.")
@click.option("--limit", type=int, help="First N pictures.")
@click.option("--scenes", default=100, show_default=True, help="Drawn scenes of 'demo'.")
@click.option("--steps", default=DEFAULT_STEPS, show_default=True)
@click.option("--canvas", default="zero", show_default=True, type=click.Choice(CANVASES))
@click.option(
    "--metric", "metrics", multiple=True, type=click.Choice(("saco", "mufidelity", "sparseness"))
)
@click.option("--squash", is_flag=True, help="Resize without cropping.")
@click.option("--explain-label", is_flag=True, help="Explain the annotated class.")
@click.option("--report", "only_report", is_flag=True, help="Measure nothing: sum up what is kept.")
def main(
    images: tuple[Path, ...],
    bundle: str,
    checkpoint: Path | None,
    annotations: Path | None,
    out: Path,
    methods: str,
    variants: str,
    random_masks: int,
    authors_code: str | None,
    shapley: Path | None,
    limit: int | None,
    scenes: int,
    steps: int,
    canvas: str,
    metrics: tuple[str, ...],
    squash: bool,
    explain_label: bool,
    only_report: bool,
) -> None:
    """Reproduce tables 1 and 2 on IMAGES, files or folders."""
    warnings.simplefilter("ignore")
    if not images and bundle != DEMO:
        raise InputError("give IMAGES, files or folders: only the bundle 'demo' draws its own")
    known = read_annotations(annotations) if annotations else {}
    with open_model(bundle, checkpoint) as model:
        manifest = model.explainer.manifest
        context = {
            "model_sha256": manifest.model_sha256,
            "steps": steps,
            "canvas": canvas,
            "squash": squash,
            "explain_label": explain_label,
            **({"metrics": sorted(set(metrics))} if metrics else {}),
        }
        records = Records(out / "records.jsonl", context)
        lines, not_applicable = list(records), []
        if not only_report:
            pictures = find_pictures(images)[:limit]
            subjects = list(
                scene_subjects(manifest, scenes)
                if not pictures
                else picture_subjects(
                    pictures, manifest, known, explain_label=explain_label, squash=squash
                )
            )
            calls = chosen_calls(methods, variants, random_masks, authors_code, model)
            if shapley is not None and model.embedded:
                calls[SHAPLEY] = shapley_method(shapley, model)
            not_applicable = measure(
                model, subjects, calls, records, steps=steps, canvas=canvas, metrics=metrics
            )
            names, rows = {subject.name for subject in subjects}, {*calls, RANDOM}
            lines = [r for r in records if r["image"] in names and r["method"] in rows]
    found = summarise(lines)
    if REFERENCE in found:
        for label in found:
            found[label]["difference_minus_vit_cx"] = vars(paired(lines, label, REFERENCE))
    _print(manifest.model_name, found, not_applicable)
    report = {**context, "model": manifest.model_name, "methods": found}
    report["not_applicable"] = not_applicable
    finish(report, out / "table1.json", ("onnxruntime", "torch", "timm"))


def _print(name: str, found: Any, not_applicable: list[str]) -> None:
    console = Console(width=None if Console().is_terminal else 130)
    column = next((paper for start, paper in COLUMNS.items() if name.startswith(start)), None)
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    table = Table(title=name, box=None, pad_edge=False, title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("n", justify="right")
    headings = ("del ↓", "ins ↑", "SRG ↑", "minus ViT-CX's", "pointing", "localised")
    for heading in (*headings, "paper's"):
        table.add_column(heading, justify="right")
    for label, row in found.items():
        base = "RISE" if label.startswith("RISE-") else label
        theirs = paper["table_1"].get(base, {}).get(column)
        if label.startswith("Variant"):
            theirs = paper["table_2"].get(label)
        less = row.get("difference_minus_vit_cx")
        pointing = row.get("pointing_small")
        place = row.get("localisation")
        table.add_row(
            label,
            str(row["images"]),
            f"{row['deletion']['mean']:.3f}",
            f"{row['insertion']['mean']:.3f}",
            "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**row["difference"]),
            "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**less) if less else "-",
            f"{pointing['mean']:.0%} of {pointing['count']}" if pointing else "-",
            f"{place['accuracy']:.0%}" if place else "-",
            f"{theirs[0]:.3f} {theirs[1]:.3f} {theirs[2]:.0%}" if theirs else "-",
        )
    for label in not_applicable:
        table.add_row(label, *["—"] * 8)
    console.print(table)
    if (further := draw_metrics(found)) is not None:
        console.print(further)
    for note in notes(found):
        console.print(note, highlight=False)


if __name__ == "__main__":
    main()
