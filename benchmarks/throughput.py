"""How fast: ours against the paper's procedure in PyTorch and against the authors' code.

``python -m benchmarks.throughput IMAGES --bundle DIR[@ENGINE] --checkpoint FILE``; every contender
explains the same pictures for the same classes, taking turns; its faithfulness stands beside its
speed. With --out, what was measured is kept as it comes, and a run that was stopped or is given
more pictures or rounds goes on. The last line of the output is JSON.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from benchmarks.contenders import AUTHORS, TORCH, Call, Contender, Workshop, parse_bundle
from benchmarks.footprint import measure
from benchmarks.speed_table import draw_table
from vitcx.commands.progress import progress_bar, skip
from vitcx.evaluation.curves import Question, score_curves
from vitcx.evaluation.intervals import bootstrap
from vitcx.evaluation.precision import rank_correlation
from vitcx.evaluation.records import Records
from vitcx.evaluation.speed import (
    PAUSE_SECONDS,
    describe_run,
    matrix_rate,
    packed_rate,
    ratios,
    summary,
)
from vitcx.evaluation.subjects import find_pictures
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.errors import EngineError, InputError, MissingExtraError
from vitcx.runtime.pictures.preprocess import prepare

PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "numpy", "scipy", "scikit-learn")


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", "name", default="deit_tiny_patch16_224", show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Default: the hub's weights.")
@click.option(
    "--bundle", "bundles", multiple=True, required=True, help="Of the same weights: DIR[@ENGINE]."
)
@click.option("--authors-code", help="FILE.py:FUNCTION of a checkout of the authors' repository.")
@click.option("--limit", default=4, show_default=True, help="Pictures.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--steps", default=28, show_default=True, help="Of the faithfulness curves.")
@click.option("--threads", type=int, help="CPU threads of every contender.  [default: all cores]")
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile.")
@click.option("--half", is_flag=True, help="Also PyTorch in bfloat16.")
@click.option("--quick", is_flag=True, help="2 pictures, 1 round, 14 steps, no memory, no packing.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file; NAME.jsonl beside it.")
def main(
    images: tuple[Path, ...],
    name: str,
    checkpoint: Path | None,
    bundles: tuple[str, ...],
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
    """Time explanations of IMAGES (files or folders)."""
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    console = Console(width=None if Console().is_terminal else 150)
    if quick:
        limit, rounds, steps = 2, 1, 14
    pictures = find_pictures(images)[:limit]
    known = str(checkpoint) if checkpoint else None
    context = {"model": name, "checkpoint": known and sha256_of(Path(known)), "threads": threads}
    records = Records(out.with_suffix(".jsonl") if out else None, {**context, "steps": steps})
    with Workshop(name, known, authors_code, threads) as workshop:
        contenders, left_out = _contenders(
            workshop, bundles, authors_code is not None, compiled, half
        )
        first = workshop.explainer(*parse_bundle(bundles[0]))
        pixels = [prepare(path, first.manifest).pixels for path in pictures]
        classes = [int(first.session.predict(p[None])[0].argmax()) for p in pixels]
        calls = {label: workshop.build(c) for label, c in contenders.items()}
        for call in calls.values():
            call(pixels[0], classes[0])  # warm
        names = [path.name for path in pictures]
        _time(calls, pixels, classes, names, rounds, records, first.session, steps)
        if authors_code is not None:
            for index in range(1 if quick else len(pixels)):
                key = f"agreement {names[index]}"
                if key not in records:
                    theirs = workshop.authors_map(pixels[index], classes[index])
                    mine = first.explain(pixels[index], classes[index], noise_std=0.0).saliency[0]
                    rank = rank_correlation(theirs, mine)
                    records.add(key, kind="agreement", rank_correlation=rank)
        if not quick:
            for label, contender in contenders.items():
                if f"memory {label}" not in records:
                    peak = measure(workshop, contender, pixels[0], classes[0])
                    records.add(f"memory {label}", kind="memory", label=label, bytes=peak)
                if contender.kind == "vitcx" and f"packed {label}" not in records:
                    explainer = workshop.explainer(contender.bundle, contender.engine)
                    rate = packed_rate(explainer, pixels, {"estimator": contender.estimator})
                    records.add(f"packed {label}", kind="packed", label=label, per_second=rate)
        report = {
            **describe_run(PACKAGES),
            **context,
            "threads": threads or "all cores",
            "pictures": len(pictures),
            "rounds": rounds,
            "steps": steps,
            "quick": quick,
            "left_out": left_out,
            "reference": AUTHORS if authors_code is not None else TORCH["loop"],
            "matrix_gflops": matrix_rate() / 1e9,
            "forward_gflop": _forward_flops(workshop.module, first.manifest.input_size) / 1e9,
        }
    report |= _results(records, list(contenders), names, rounds, report)
    report["seconds"] = round(time.perf_counter() - started, 1)
    console.print(draw_table(report))
    for label, reason in left_out.items():
        console.print(f"left out: {label}: {reason}", highlight=False)
    if out is not None:
        out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(json.dumps(report, ensure_ascii=False))


def _contenders(
    workshop: Workshop, bundles: tuple[str, ...], authors: bool, compiled: bool, half: bool
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that can run here, by label, and why the others cannot."""
    found: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    for text in bundles:
        bundle, engine = parse_bundle(text)
        for estimator in ("paper", "fast"):
            contender = Contender("vitcx", bundle, engine, estimator)
            try:
                label = workshop.label(contender)
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
        found[workshop.label(Contender(kind))] = Contender(kind)
    for kind, asked, option in (
        ("compiled", compiled, "--compile"),
        ("bf16", half, "--half"),
        ("authors", authors, "--authors-code"),
    ):
        if not asked:
            left_out[workshop.label(Contender(kind))] = f"{option} was not given"
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
            answers = {}
            seconds = {}
            for label in order[shift:] + order[:shift]:
                time.sleep(PAUSE_SECONDS)
                start = time.perf_counter()
                answers[label] = calls[label](pixels[item], classes[item])
                seconds[label] = time.perf_counter() - start
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
                    seconds=seconds[label],
                    facts=answers[label][1],
                    insertion_minus_deletion=scores.get(label),
                )
            bar.advance(task)


def _results(
    records: Records, labels: Sequence[str], names: list[str], rounds: int, report: dict[str, Any]
) -> dict[str, Any]:
    lines = list(records)
    asked = [
        r for r in lines if r["kind"] == "turn" and r["round"] < rounds and r["picture"] in names
    ]
    asked.sort(key=lambda r: (r["round"], r["picture"]))  # so that calls of a turn are paired
    turns = {label: [r for r in asked if r["label"] == label] for label in labels}
    reference = turns[report["reference"]]
    flops = report["forward_gflop"] / report["matrix_gflops"]  # seconds at the full matrix rate
    results: dict[str, Any] = {}
    for label, found in turns.items():
        scores = _scores(found)
        paired = np.subtract(scores, _scores(reference))
        row: dict[str, Any] = {
            **summary([r["seconds"] for r in found]),
            "times_faster": ratios(
                [r["seconds"] for r in reference], [r["seconds"] for r in found]
            ),
            "insertion_minus_deletion": bootstrap(scores).mean,
            "minus_reference": vars(bootstrap(list(paired))),
        }
        if found[0]["facts"]:
            facts = [r["facts"] for r in found]
            keys = [k for k in facts[0] if k != "passes"]
            row["stages"] = {k: statistics.median(f[k] for f in facts) for k in keys}
            row["outside_forward_passes"] = statistics.median(
                1 - (f["encode"] + f["score"]) / f["total"] for f in facts
            )
            row["share_of_matrix_rate"] = statistics.median(
                (f["passes"] - 1) * flops / f["score"] for f in facts
            )
            each = 1 if label.endswith("fast") else 2
            row["masks"] = [(f["passes"] - 1) // each for f in facts]
        for line in lines:
            if line.get("label") == label and line["kind"] == "memory":
                row["peak_bytes"] = line["bytes"]
            if line.get("label") == label and line["kind"] == "packed":
                row["packed_per_second"] = line["per_second"]
        results[label] = row
    agreement = [r["rank_correlation"] for r in lines if r["kind"] == "agreement"]
    return {"rank_correlation_with_authors_noise_off": agreement or None, "results": results}


def _scores(turns: list[dict[str, Any]]) -> list[float]:
    return [r["insertion_minus_deletion"] for r in turns if r["round"] == 0]


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
