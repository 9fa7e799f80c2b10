"""Tables 1 and 2 of the paper: every method, every variant, on your pictures and models.

``python -m benchmarks.table1 --images DIR --annotations CSV --models vit_base_patch16_224,...``
takes the weights of timm's hub; ``--checkpoint`` those of a file. ``--models demo`` is the embedded
model on drawn scenes, each object a picture of its own, with the truth known. It keeps a line for
each picture and method in ``--out``, and goes on where it was stopped.
"""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from benchmarks.authors import load_authors, run_authors
from benchmarks.methods import METHODS, VARIANTS, Explain, Model, NotApplicable, method
from benchmarks.paper_figures import TABLE_1, TABLE_2, column_of
from benchmarks.sources import DEMO, Source
from vitcx.commands.progress import count
from vitcx.evaluation.boxes import read_annotations
from vitcx.evaluation.curves import CANVASES, DEFAULT_STEPS
from vitcx.evaluation.records import Records
from vitcx.evaluation.report import notes
from vitcx.evaluation.study import (
    Answer,
    AnswerMaker,
    paired,
    random_order,
    run_study,
    summarise,
)
from vitcx.evaluation.subjects import Subject, find_pictures
from vitcx.runtime.bundle import Manifest
from vitcx.runtime.digests import replacing
from vitcx.runtime.errors import InputError

AUTHORS = "authors' code"
RANDOM = "random order"
REFERENCE = "ViT-CX"


def answers_by(model: Model, explain: Explain) -> Callable[[Iterable[Subject]], Iterator[Answer]]:
    """A method as `run_study` wants it; the class is the likeliest where none is given."""

    def answers(subjects: Iterable[Subject]) -> Iterator[Answer]:
        for subject in subjects:
            target = subject.target
            if target is None:
                target = int(model.explainer.session.predict(subject.pixels[None])[0].argmax())
            saliency = np.asarray(explain(model, subject.pixels, target), dtype=np.float32)
            yield Answer(subject, target, np.ascontiguousarray(saliency))

    return answers


def _variant(settings: dict[str, Any]) -> Explain:
    return lambda model, image, target: model.explainer.explain(image, target, **settings).saliency[
        0
    ]


def _authors(place: str, threshold: float) -> Explain:
    function = load_authors(place)

    def explain(model: Model, image: Any, target: int) -> Any:
        torch.manual_seed(0)
        return run_authors(function, model.module, image, target, threshold=threshold)

    return explain


def _shapley(weights: Path, classifier: nn.Module) -> Explain:
    from benchmarks.methods.shapley import load_shapley, shapley_map

    learned = load_shapley(weights, classifier)
    return lambda model, image, target: shapley_map(learned, model.module, image, target)


def chosen_calls(
    methods: str, variants: str, random_masks: int, authors: str | None, manifest: Manifest
) -> dict[str, Explain]:
    """Methods, variants of table 2 and the authors' code, by the names of their rows."""
    calls = {name: method(name) for name in filter(None, methods.split(","))}
    for variant in VARIANTS if variants == "all" else filter(None, variants.split(",")):
        settings = dict(VARIANTS[variant])
        if settings.get("method") == "random-cx":
            settings["mask_count"] = random_masks
        calls.setdefault(variant, _variant(settings))
    if authors is not None:
        calls[AUTHORS] = _authors(authors, manifest.distance_threshold)
    return calls


def measure(
    model: Model,
    subjects: list[Subject],
    calls: Mapping[str, Explain],
    records: Records,
    *,
    steps: int,
    canvas: str,
) -> list[str]:
    """Judge what `records` lacks; returns the names of those that cannot explain the model."""
    assert model.explainer is not None
    session = model.explainer.session
    makers: dict[str, AnswerMaker] = {n: answers_by(model, call) for n, call in calls.items()}
    makers[RANDOM] = lambda asked: random_order(session, asked)
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
                    advance=advance,
                )
            except NotApplicable:
                not_applicable.append(label)
    return not_applicable


@click.command()
@click.option("--images", multiple=True, type=click.Path(path_type=Path), help="Not for 'demo'.")
@click.option("--annotations", "--labels", type=click.Path(path_type=Path), help="CSV.")
@click.option("--models", default="deit_tiny_patch16_224", show_default=True, help="timm, commas.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="For a single model.")
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
@click.option("--squash", is_flag=True, help="Resize without cropping.")
@click.option("--explain-label", is_flag=True, help="Explain the annotated class.")
@click.option("--report", "only_report", is_flag=True, help="Measure nothing: sum up what is kept.")
def main(
    images: tuple[Path, ...],
    annotations: Path | None,
    models: str,
    checkpoint: Path | None,
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
    squash: bool,
    explain_label: bool,
    only_report: bool,
) -> None:
    """Reproduce tables 1 and 2."""
    warnings.simplefilter("ignore")
    if not images and models != DEMO:
        raise InputError("give --images, files or folders: only the model 'demo' draws its own")
    console = Console(width=None if Console().is_terminal else 130)
    known = read_annotations(annotations) if annotations else {}
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "steps": steps,
        "canvas": canvas,
        "models": {},
    }
    for name in models.split(","):
        pictures = find_pictures(images)[:limit]
        source = Source(name, checkpoint, pictures, known, scenes, explain_label, squash)
        with source.open(out / name) as model:
            assert model.explainer is not None
            manifest = model.explainer.manifest
            context = {
                "model_sha256": manifest.model_sha256,
                "steps": steps,
                "canvas": canvas,
                "squash": squash,
                "explain_label": explain_label,
            }
            records = Records(out / name / "records.jsonl", context)
            lines, not_applicable = list(records), []
            if not only_report:
                subjects = source.subjects(manifest)
                calls = chosen_calls(methods, variants, random_masks, authors_code, manifest)
                if shapley is not None and name == DEMO:
                    calls["ViT Shapley"] = _shapley(shapley, model.module)
                not_applicable = measure(
                    model, subjects, calls, records, steps=steps, canvas=canvas
                )
                names = {subject.name for subject in subjects}
                rows = {*calls, RANDOM}
                lines = [r for r in records if r["image"] in names and r["method"] in rows]
        found = summarise(lines)
        if REFERENCE in found:
            for label in found:
                found[label]["difference_minus_vit_cx"] = vars(paired(lines, label, REFERENCE))
        report["models"][name] = {"methods": found, "not_applicable": not_applicable}
        _print(console, name, found, not_applicable)
    with replacing(out / "table1.json") as path:
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(json.dumps({"written": str(out / "table1.json")}))


def _print(console: Console, name: str, found: Any, not_applicable: list[str]) -> None:
    column = column_of(name)
    table = Table(title=name, box=None, pad_edge=False, title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("n", justify="right")
    headings = ("del ↓", "ins ↑", "ins - del ↑", "minus ViT-CX's", "pointing", "localised")
    for heading in (*headings, "paper's"):
        table.add_column(heading, justify="right")
    for label, row in found.items():
        base = "RISE" if label.startswith("RISE-") else label
        paper = TABLE_2.get(label) if label.startswith("Variant") else None
        if column is not None and paper is None:
            paper = TABLE_1.get(base, {}).get(column)
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
            f"{paper[0]:.3f} {paper[1]:.3f} {paper[2]:.0%}" if paper else "-",
        )
    for label in not_applicable:
        table.add_row(label, *["—"] * 8)
    console.print(table)
    for note in notes(found):
        console.print(note, highlight=False)


if __name__ == "__main__":
    main()
