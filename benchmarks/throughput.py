"""How fast: ours against the paper's procedure in PyTorch and against the authors' code.

    python -m benchmarks.throughput PHOTOGRAPHS --bundle DIR[@ENGINE] --checkpoint FILE --out FILE

Every contender explains the same pictures for the same classes, taking turns; its faithfulness
stands beside its speed. With --out, what was measured is kept as it comes, and a run that was
stopped or is given more pictures or rounds goes on.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.command import Benchmark, finish, images_argument, out_option
from benchmarks.contenders import (
    AUTHORS,
    TORCH,
    Builder,
    Call,
    Contender,
    parse_bundle,
    peak_of,
)
from benchmarks.methods import parse_method
from benchmarks.models import DEMO
from benchmarks.speed_report import draw_table, speed_results
from vitcx.commands.progress import progress_bar, skip
from vitcx.evaluation.curves import Question, score_curves
from vitcx.evaluation.map_agreement import rank_correlation
from vitcx.evaluation.records import Records
from vitcx.evaluation.speed import interleave, matrix_rate, packed_rate
from vitcx.evaluation.subjects import find_pictures, scene_subjects
from vitcx.evaluation.variants import parse_variant
from vitcx.runtime.errors import EngineError, InputError, MissingExtraError
from vitcx.runtime.pictures.preprocess import prepare

PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "scipy", "scikit-learn")
VARIANTS = ("paper", "quick", "balanced")


@click.command(cls=Benchmark)
@images_argument
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Default: the hub's weights.")
@click.option(
    "--bundle", "bundles", multiple=True, required=True, help="Of the same weights: DIR[@ENGINE]."
)
@click.option("--authors-code", help="FILE.py:FUNCTION of a checkout of the authors' repository.")
@click.option(
    "--variant", "variants", multiple=True, default=VARIANTS, show_default=True,
    help="[LABEL=]VARIANT of ours, on each bundle.",
)  # fmt: skip
@click.option("--limit", default=4, show_default=True, help="Pictures.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--steps", default=28, show_default=True, help="Of the faithfulness curves.")
@click.option("--threads", type=int, help="CPU threads of every contender.  [default: all cores]")
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile.")
@click.option("--half", is_flag=True, help="Also PyTorch in bfloat16.")
@click.option("--quick", is_flag=True, help="2 pictures, 1 round, 14 steps, no memory, no packing.")
@out_option("JSON file; NAME.jsonl beside it.")
def main(
    images: tuple[Path, ...],
    checkpoint: Path | None,
    bundles: tuple[str, ...],
    variants: tuple[str, ...],
    authors_code: str | None,
    limit: int,
    rounds: int,
    steps: int,
    threads: int | None,
    compiled: bool,
    half: bool,
    quick: bool,
    out: Path | None,
) -> None:
    """Time explanations of IMAGES, files or folders; 'demo' draws its own scenes."""
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    console = Console(width=None if Console().is_terminal else 150)
    if quick:
        limit, rounds, steps = 2, 1, 14
    judge, engine = parse_bundle(bundles[0])
    if not images and judge != DEMO:
        raise InputError("give IMAGES, files or folders: only the bundle 'demo' draws its own")
    known = str(checkpoint) if checkpoint else None
    with Builder(judge, known, authors_code, threads) as builder:
        contenders, left_out = _contenders(
            builder, bundles, variants, authors_code is not None, compiled, half
        )
        first = builder.explainer(judge, engine)
        context = {
            "model": first.manifest.model_name,
            "model_sha256": first.manifest.model_sha256,
            "threads": threads,
            "steps": steps,
        }
        records = Records(out.with_suffix(".jsonl") if out else None, context)
        pictures = {
            p.name: prepare(p, first.manifest).pixels for p in find_pictures(images)[:limit]
        }
        if judge == DEMO:
            pictures = {s.name: s.pixels for s in scene_subjects(first.manifest, limit)}
        pixels = list(pictures.values())[:limit]
        classes = [int(first.session.predict(p[None])[0].argmax()) for p in pixels]
        calls = {label: builder.build(c) for label, c in contenders.items()}
        for call in calls.values():
            call(pixels[0], classes[0])  # warm
        names = list(pictures)[:limit]
        _time(calls, pixels, classes, names, rounds, records, first.session, steps)
        if authors_code is not None:
            for index in range(1 if quick else len(pixels)):
                key = f"agreement {names[index]}"
                if key not in records:
                    theirs = builder.authors_map(pixels[index], classes[index])
                    mine = first.explain(pixels[index], classes[index], noise_std=0.0).saliency[0]
                    rank = rank_correlation(theirs, mine)
                    records.add(key, kind="agreement", rank_correlation=rank)
        if not quick:
            for label, contender in contenders.items():
                if f"memory {label}" not in records:
                    peak = peak_of(builder, contender, pixels[0], classes[0])
                    records.add(f"memory {label}", kind="memory", label=label, bytes=peak)
                if contender.kind == "vitcx" and f"packed {label}" not in records:
                    explainer = builder.explainer(contender.bundle, contender.engine)
                    rate = packed_rate(explainer, pixels, parse_variant(contender.variant))
                    records.add(f"packed {label}", kind="packed", label=label, per_second=rate)
        report = {
            **context,
            "threads": threads or "all cores",
            "pictures": len(names),
            "rounds": rounds,
            "quick": quick,
            "left_out": left_out,
            "reference": AUTHORS if authors_code is not None else TORCH["loop"],
            "matrix_gflops": matrix_rate() / 1e9,
            "forward_gflop": _forward_flops(builder.module, first.manifest.input_size) / 1e9,
        }
    report |= speed_results(records, list(contenders), names, rounds, report)
    report["seconds"] = round(time.perf_counter() - started, 1)
    console.print(draw_table(report))
    for label, reason in left_out.items():
        console.print(f"left out: {label}: {reason}", highlight=False)
    finish(report, out, PACKAGES)


def _contenders(
    builder: Builder,
    bundles: Sequence[str],
    variants: Sequence[str],
    authors: bool,
    compiled: bool,
    half: bool,
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that can run here, by label, and why the others cannot."""
    found: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    for text in bundles:
        bundle, engine = parse_bundle(text)
        for name, variant in map(parse_method, variants):
            contender = Contender("vitcx", bundle, engine, variant, name)
            try:
                label = builder.label(contender)
            except (EngineError, MissingExtraError) as error:
                left_out[text] = str(error)
                continue
            if label in found:
                raise InputError(f"two --bundle are both '{label}': compare them in two runs")
            found[label] = contender
    if parse_bundle(bundles[0])[1] != "auto" and bundles[0] in left_out:
        raise InputError(f"the first --bundle judges the maps, and {left_out[bundles[0]]}")
    kinds = ["loop", "batched", *["compiled"] * compiled, *["bf16"] * half, *["authors"] * authors]
    for kind in kinds:
        found[builder.label(Contender(kind))] = Contender(kind)
    for kind, asked, option in (
        ("compiled", compiled, "--compile"),
        ("bf16", half, "--half"),
        ("authors", authors, "--authors-code"),
    ):
        if not asked:
            left_out[builder.label(Contender(kind))] = f"{option} was not given"
    return found, left_out


def _time(
    calls: dict[str, Call],
    pixels: list[Any],
    classes: list[int],
    names: list[str],
    rounds: int,
    records: Records,
    judge: Any,
    steps: int,
) -> None:
    """Every contender on every picture, taking turns; the first round's maps are judged."""
    order = list(calls)
    wanted = rounds * len(pixels)
    with progress_bar() as bar:
        task = bar.add_task("pictures x rounds", total=wanted)
        for turn in range(wanted):
            round_, item = divmod(turn, len(pixels))
            key = f"turn {round_} {names[item]}"
            done = [r for r in records if r["key"].startswith(f"{key} ")]
            if {r["label"] for r in done} >= set(order):
                skip(bar, task, 1)
                continue
            shift = turn % len(order)
            answers: dict[str, Any] = {}

            def explain(_: int, label: str, item: int = item, answers: Any = answers) -> None:
                answers[label] = calls[label](pixels[item], classes[item])

            turns = {n: partial(explain, label=n) for n in order[shift:] + order[:shift]}
            seconds = interleave(turns, 1, 1)
            questions = [Question(pixels[item], answers[n][0], classes[item]) for n in order]
            curves = score_curves(judge, questions, steps=steps) if round_ == 0 else ()
            scores = {label: curve.difference for label, curve in zip(order, curves, strict=False)}
            for label in order:
                records.add(
                    f"{key} {label}",
                    kind="turn",
                    label=label,
                    round=round_,
                    picture=names[item],
                    seconds=seconds[label][0],
                    facts=answers[label][1],
                    insertion_minus_deletion=scores.get(label),
                )
            bar.advance(task)


def _forward_flops(module: Any, size: tuple[int, int]) -> int:
    """Of one picture's forward pass, two for each multiply-add, attention included."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        module(torch.zeros(1, 3, *size))
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
