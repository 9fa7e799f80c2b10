"""Price against faithfulness: every method and every variant, on one or more models.

    python -m benchmarks.price_faithfulness PHOTOGRAPHS --bundle DIR --checkpoint FILE --out OUT \\
        --method paper --method balanced --method 'fast=vit-cx:estimator=fast' --method CGW2

Faithfulness is insertion minus deletion on one canvas, the Symmetric Relevance Gain (SRG; Blücher
et al., TMLR 2024); the price is passes of the model, and seconds of one explanation at a time. All
methods explain the same pictures for the class that the bundle finds likeliest, in turn. A line for
each picture, method and canvas is kept in OUT as it comes: a run that was stopped goes on, and
methods, canvases and pictures can be added. ``--report`` measures nothing and draws anew. OUT gets
``price_faithfulness.json`` and pictures for light and dark pages.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from benchmarks.command import Benchmark, finish, images_argument
from benchmarks.methods import (
    AUTHORS,
    METHODS,
    SHAPLEY,
    Explain,
    NotApplicable,
    authors_method,
    method,
    parse_method,
    shapley_method,
)
from benchmarks.models import DEMO, Model, open_model
from benchmarks.price_report import draw_table, keep_common, summarise
from vitcx.commands.progress import progress_bar, skip
from vitcx.evaluation.curves import CANVASES, Question, score_curves
from vitcx.evaluation.records import Records
from vitcx.evaluation.subjects import Subject, find_pictures, picture_subjects, scene_subjects
from vitcx.evaluation.variants import RANDOM_ORDER
from vitcx.runtime.errors import InputError
from vitcx.runtime.presets import PRESETS

STEPS = 28
# Imputing a frame takes ten times a small model's pass.
ROAD_STEPS = 10
DEFAULT_METHODS = (*PRESETS, "TAM", "CGW1", "CGW2", "Grad-CAM", RANDOM_ORDER)


def find_method(
    spec: str, model: Model, authors_code: str | None, shapley: Path | None
) -> Explain | None:
    """What explains; None where it needs what was not given for this model."""
    if spec == AUTHORS:
        if authors_code is None:
            return None
        return authors_method(authors_code, model.explainer.manifest.distance_threshold)
    if spec == SHAPLEY:
        return shapley_method(shapley, model) if shapley is not None and model.embedded else None
    if spec == RANDOM_ORDER:
        return lambda _model, image, _target: (_noise(image), {"passes": 0})
    return method(spec)


def _noise(image: Any) -> Any:
    """The same for the same picture."""
    seed = int(np.abs(image).sum(dtype=np.float64) * 1000) % 2**32
    return np.random.default_rng(seed).random(image.shape[1:], dtype=np.float32)


def measure(
    model: Model,
    subjects: Sequence[Subject],
    methods: Mapping[str, Explain],
    records: Records,
    steps: Mapping[str, int],
    advance: Callable[[bool], None] = lambda new: None,
) -> list[str]:
    """Explain and judge what `records` lacks, picture by picture.

    Parameters
    ----------
    methods : by what their lines are kept under.
    steps : of the curves, by canvas.
    advance : called once for each picture, with whether anything was measured.

    Returns
    -------
    the methods that cannot explain the model.
    """
    session = model.explainer.session
    usable, warm = dict(methods), set[str]()
    for subject in subjects:
        missing = {
            name: [canvas for canvas in steps if f"{canvas}|{name}|{subject.name}" not in records]
            for name in usable
        }
        wanted = [name for name, canvases in missing.items() if canvases]
        if not wanted:
            advance(False)
            continue
        target = subject.target
        if target is None:
            target = int(session.predict(subject.pixels[None])[0].argmax())
        maps, facts = {}, {}
        for name in wanted:
            explain = usable[name]
            try:
                if name not in warm:
                    explain(model, subject.pixels, target)
                    warm.add(name)
                start = time.perf_counter()
                maps[name], found = explain(model, subject.pixels, target)
            except NotApplicable:
                del usable[name]
                continue
            facts[name] = {"seconds": round(time.perf_counter() - start, 5), **found}
        for canvas, count in steps.items():
            asked = [name for name in maps if canvas in missing[name]]
            questions = [Question(subject.pixels, maps[name], target) for name in asked]
            curves = score_curves(session, questions, steps=count, canvas=canvas)
            for name, curve in zip(asked, curves, strict=True):
                records.add(
                    f"{canvas}|{name}|{subject.name}",
                    canvas=canvas,
                    method=name,
                    image=subject.name,
                    target=target,
                    deletion=curve.deletion_auc,
                    insertion=curve.insertion_auc,
                    srg=curve.difference,
                    **facts[name],
                )
        advance(True)
    return [name for name in methods if name not in usable]


@click.command(cls=Benchmark)
@images_argument
@click.option("--bundle", "bundles", multiple=True, required=True, help="Folder, or 'demo'.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Weights in torch, one for each --bundle that is a folder, in the same order.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=DEFAULT_METHODS,
    show_default=True,
    help=f"[LABEL=]METHOD: {', '.join(METHODS)}, RISE-N, a preset or an engine's method, with "
    f"settings if any (balanced:seed=1), {AUTHORS}, {SHAPLEY}, {RANDOM_ORDER}.",
)
@click.option("--ours", multiple=True, help="Labels to draw as a line.  [default: the presets]")
@click.option("--reference", help="Label that the others are held against.  [default: the first]")
@click.option("--canvas", "canvases", multiple=True, default=("zero", "blur", "road"),
              show_default=True, type=click.Choice(CANVASES))  # fmt: skip
@click.option("--steps", default=STEPS, show_default=True, help="Of each curve.")
@click.option("--road-steps", default=ROAD_STEPS, show_default=True, help="On the canvas 'road'.")
@click.option("--limit", type=click.IntRange(min=1), default=300, show_default=True)
@click.option("--squash", is_flag=True, help="Resize without cropping.")
@click.option("--engine", default="auto", show_default=True)
@click.option("--threads", type=int, help="CPU threads of the engine and of torch.")
@click.option("--authors-code", help="FILE.py:FUNCTION of a checkout of the authors' repository.")
@click.option("--shapley", type=click.Path(path_type=Path), help="Weights, for 'demo'.")
@click.option("--common", is_flag=True, help="Report only pictures that every method explained.")
@click.option("--report", "only_report", is_flag=True, help="Measure nothing: draw what is kept.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder.")
def main(
    images: tuple[Path, ...],
    bundles: tuple[str, ...],
    checkpoints: tuple[Path, ...],
    methods: tuple[str, ...],
    ours: tuple[str, ...],
    reference: str | None,
    canvases: tuple[str, ...],
    steps: int,
    road_steps: int,
    limit: int,
    squash: bool,
    engine: str,
    threads: int | None,
    authors_code: str | None,
    shapley: Path | None,
    common: bool,
    only_report: bool,
    out: Path,
) -> None:
    """Measure price and faithfulness on IMAGES, files or folders; 'demo' draws its own scenes."""
    warnings.simplefilter("ignore")
    chosen = dict(parse_method(text) for text in methods)
    labels = {spec: label for label, spec in chosen.items()}
    if len(labels) < len(methods):
        raise InputError("two --method have the same label or are the same method")
    for spec in labels.keys() - {AUTHORS, SHAPLEY, RANDOM_ORDER}:
        method(spec)  # an unknown one is refused before anything is measured
    reference = reference or next(iter(chosen))
    if unknown := [label for label in (reference, *ours) if label not in chosen]:
        raise InputError(f"'{unknown[0]}' is no label of a --method: {', '.join(chosen)}")
    folders = [bundle for bundle in bundles if bundle != DEMO]
    if len({Path(bundle).name for bundle in bundles}) < len(bundles):
        raise InputError("two --bundle have the same folder name: rename one")
    if folders and not images:
        raise InputError("give IMAGES, files or folders: only the bundle 'demo' draws its own")
    if len(checkpoints) > len(folders):
        raise InputError(f"{len(checkpoints)} --checkpoint for {len(folders)} --bundle")
    weights = dict(zip(folders, checkpoints, strict=False))
    counts = {canvas: road_steps if canvas == "road" else steps for canvas in canvases}
    report: dict[str, Any] = {"steps": counts, "reference": reference, "models": {}}
    console = Console(width=None if Console().is_terminal else 150)
    if threads is not None:
        _limit_torch(threads)
    for bundle in bundles:
        name = Path(bundle).name
        with open_model(bundle, weights.get(bundle), engine, threads=threads) as model:
            manifest = model.explainer.manifest
            context = {"model_sha256": manifest.model_sha256, "squash": squash,
                       "steps": steps, "road_steps": road_steps}  # fmt: skip
            records = Records(out / f"{name}.jsonl", context)
            if bundle == DEMO:
                subjects = list(scene_subjects(manifest, limit))[:limit]
            else:
                pictures = find_pictures(images)[:limit]
                subjects = list(picture_subjects(pictures, manifest, {}, squash=squash))
            left_out: dict[str, str] = {}
            if not only_report:
                left_out = _measure(model, subjects, labels, records, counts, authors_code, shapley)
            names = {subject.name for subject in subjects}
            lines = [r for r in records if r["image"] in names and r["canvas"] in counts]
            if common:
                lines = keep_common(lines)
            found = summarise(lines, labels, reference)
            report["models"][name] = {
                "model": manifest.model_name,
                "precision": manifest.precision,
                "engine": model.explainer.session.engine,
                "methods": found,
                "left_out": left_out,
            }
        console.print(draw_table(name, found, reference))
        for label, reason in left_out.items():
            console.print(f"left out: {label}: {reason}", highlight=False)
    line = list(ours) or [label for label, spec in chosen.items() if spec in PRESETS]
    from benchmarks.price_picture import write_pictures  # needs the extra plot

    report["pictures"] = write_pictures(report["models"], line, out)
    finish(report, out / "price_faithfulness.json", ("onnxruntime", "torch"))


def _limit_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _measure(
    model: Model,
    subjects: Sequence[Subject],
    labels: Mapping[str, str],
    records: Records,
    counts: Mapping[str, int],
    authors_code: str | None,
    shapley: Path | None,
) -> dict[str, str]:
    """Why methods were left out, by label."""
    left_out, calls = {}, {}
    for spec, label in labels.items():
        found = find_method(spec, model, authors_code, shapley)
        if found is None:
            left_out[label] = "what it needs was not given for this model"
        else:
            calls[spec] = found
    with progress_bar() as bar:
        task = bar.add_task("pictures", total=len(subjects))

        def advance(new: bool) -> None:
            bar.advance(task) if new else skip(bar, task, 1)

        for spec in measure(model, subjects, calls, records, counts, advance):
            left_out[labels[spec]] = "it cannot explain this model"
    return left_out


if __name__ == "__main__":
    main()
