"""Tables 1 and 2 of the paper: every method, every variant, on your pictures and models.

``python -m benchmarks.table1 --images DIR --annotations CSV --models vit_base_patch16_224,...``
takes the weights of timm's hub; ``--checkpoint`` those of a file. It keeps a line for each picture
and method in ``--out``, and goes on where it was stopped.
"""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.authors import load_authors, run_authors
from benchmarks.methods import METHODS, VARIANTS, Explain, Model, NotApplicable, method
from benchmarks.paper_figures import TABLE_1, TABLE_2, column_of
from vitcx.evaluation.boxes import read_annotations
from vitcx.evaluation.curves import CANVASES, DEFAULT_STEPS
from vitcx.evaluation.records import Records
from vitcx.evaluation.study import Answer, paired, random_order, run_study, summarise
from vitcx.evaluation.subjects import Subject, find_pictures, picture_subjects
from vitcx.export import export_model
from vitcx.export.models import timm_model
from vitcx.runtime.digests import replacing
from vitcx.runtime.explainer import load

AUTHORS = "authors' code"


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


@click.command()
@click.option("--images", required=True, multiple=True, type=click.Path(path_type=Path))
@click.option("--annotations", "--labels", type=click.Path(path_type=Path), help="CSV.")
@click.option("--models", default="deit_tiny_patch16_224", show_default=True, help="timm, commas.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="For a single model.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="RISE-N: N masks.")
@click.option("--variants", default="", help="Of table 2, commas, or 'all'.")
@click.option("--random-masks", default=5000, show_default=True, help="Of variant 2.")
@click.option("--authors-code", help="FILE.py:FUNCTION of a checkout of the authors' repository.")
@click.option("--limit", type=int, help="First N pictures.")
@click.option("--steps", default=DEFAULT_STEPS, show_default=True)
@click.option("--canvas", default="zero", show_default=True, type=click.Choice(CANVASES))
@click.option("--squash", is_flag=True, help="Resize without cropping.")
@click.option("--explain-label", is_flag=True, help="Explain the annotated class.")
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
    limit: int | None,
    steps: int,
    canvas: str,
    squash: bool,
    explain_label: bool,
) -> None:
    """Reproduce tables 1 and 2."""
    warnings.simplefilter("ignore")
    console = Console(width=None if Console().is_terminal else 130)
    pictures = find_pictures(images)[:limit]
    known = read_annotations(annotations) if annotations else {}
    chosen_variants = list(VARIANTS) if variants == "all" else [*filter(None, variants.split(","))]
    authors = load_authors(authors_code) if authors_code else None
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "pictures": len(pictures),
        "steps": steps,
        "canvas": canvas,
        "models": {},
    }
    for name in models.split(","):
        folder = out / name
        bundle = folder / "bundle"
        if not (bundle / "manifest.json").exists():
            export_model(name, bundle, checkpoint=checkpoint)
        module, _ = timm_model(name, checkpoint)
        with load(bundle) as explainer:
            model = Model(module, explainer)
            context = {
                "model_sha256": explainer.manifest.files["model.onnx"],
                "steps": steps,
                "canvas": canvas,
                "squash": squash,
                "explain_label": explain_label,
            }
            records = Records(folder / "records.jsonl", context)
            session = explainer.session
            subjects = list(
                picture_subjects(
                    pictures,
                    explainer.manifest,
                    known,
                    explain_label=explain_label,
                    squash=squash,
                )
            )
            calls: dict[str, Explain] = {m: method(m) for m in filter(None, methods.split(","))}
            for variant in chosen_variants:
                settings = dict(VARIANTS[variant])
                if settings.get("method") == "random-cx":
                    settings["mask_count"] = random_masks
                calls.setdefault(variant, _variant(settings))
            if authors is not None:
                threshold = explainer.manifest.distance_threshold

                def run(m: Model, image: Any, target: int, limit: float = threshold) -> Any:
                    torch.manual_seed(0)
                    return run_authors(authors, m.module, image, target, threshold=limit)

                calls[AUTHORS] = run
            not_applicable = []
            with Progress(console=Console(stderr=True), transient=True) as progress:
                for label, call in calls.items():
                    bar = progress.add_task(f"{name} {label}", total=len(subjects))

                    def advance(_: str, bar: Any = bar) -> None:
                        progress.advance(bar)

                    try:
                        run_study(
                            session,
                            {label: answers_by(model, call)},
                            lambda chosen=subjects: chosen,
                            records,
                            steps=steps,
                            canvas=canvas,
                            advance=advance,
                        )
                    except NotApplicable:
                        not_applicable.append(label)
                run_study(
                    session,
                    {"random order": lambda s, session=session: random_order(session, s)},
                    lambda chosen=subjects: chosen,
                    records,
                    steps=steps,
                    canvas=canvas,
                )
        names = {subject.name for subject in subjects}
        lines = [
            r for r in records if r["image"] in names and r["method"] in {*calls, "random order"}
        ]
        found = summarise(lines)
        if "ViT-CX" in found:
            for label in found:
                found[label]["difference_minus_vit_cx"] = vars(paired(lines, label, "ViT-CX"))
        report["models"][name] = {"methods": found, "not_applicable": not_applicable}
        _print(console, name, found, not_applicable)
    with replacing(out / "table1.json") as path:
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(json.dumps({"written": str(out / "table1.json")}))


def _print(console: Console, name: str, found: Any, not_applicable: list[str]) -> None:
    column = column_of(name)
    table = Table(title=name, box=None, pad_edge=False, title_justify="left")
    table.add_column("method", no_wrap=True)
    for heading in ("del ↓", "ins ↑", "ins - del ↑", "minus ViT-CX's", "pointing", "paper's"):
        table.add_column(heading, justify="right")
    for label, row in found.items():
        base = label.partition("-1")[0] if label.startswith("RISE-") else label
        base = "RISE" if label.startswith("RISE-") else base
        paper = TABLE_2.get(label) if label.startswith("Variant") else None
        if column is not None and paper is None:
            paper = TABLE_1.get(base, {}).get(column)
        less = row.get("difference_minus_vit_cx")
        pointing = row.get("pointing_small")
        table.add_row(
            label,
            f"{row['deletion']['mean']:.3f}",
            f"{row['insertion']['mean']:.3f}",
            "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**row["difference"]),
            "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**less) if less else "-",
            f"{pointing['mean']:.0%}" if pointing else "-",
            f"{paper[0]:.3f} {paper[1]:.3f} {paper[2]:.0%}" if paper else "-",
        )
    for label in not_applicable:
        table.add_row(label, *["—"] * 6)
    console.print(table)


if __name__ == "__main__":
    main()
