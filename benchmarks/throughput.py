"""How fast: ours against the paper's procedure in PyTorch and against the authors' code.

``python -m benchmarks.throughput --model NAME --checkpoint FILE --bundle DIR IMAGES...``; every
contender explains the same pictures for the same classes, taking turns; its faithfulness stands
beside its speed. The last line of the output is JSON.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
import warnings
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from benchmarks.authors import load_authors, run_authors
from vitcx.evaluation.curves import Question, score_curves
from vitcx.evaluation.intervals import bootstrap
from vitcx.evaluation.speed import (
    interleave,
    matrix_rate,
    packed_rate,
    peak_memory,
    stages,
    summary,
)
from vitcx.evaluation.subjects import find_pictures
from vitcx.export.models import timm_model
from vitcx.runtime.explainer import load
from vitcx.runtime.preprocess import prepare

REFERENCE = "PyTorch, a mask at a time"


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", "name", default="deit_tiny_patch16_224", show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Default: the hub's weights.")
@click.option("--bundle", "bundles", multiple=True, required=True, help="Of the same weights.")
@click.option("--authors-code", help="FILE.py:FUNCTION of a checkout of the authors' repository.")
@click.option("--limit", default=4, show_default=True, help="Pictures.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--steps", default=28, show_default=True, help="Of the faithfulness curves.")
@click.option("--threads", type=int, help="CPU threads of every contender.  [default: all cores]")
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile.")
@click.option("--quick", is_flag=True, help="2 pictures, 1 round, 14 steps.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file.")
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
    quick: bool,
    out: Path | None,
) -> None:
    """Time explanations of IMAGES (files or folders)."""
    warnings.simplefilter("ignore")
    console = Console(width=None if Console().is_terminal else 130)
    if quick:
        limit, rounds, steps = 2, 1, 14
    if threads is not None:
        torch.set_num_threads(threads)
    module, source = timm_model(name, checkpoint)
    module.requires_grad_(False)
    explainers = {bundle: load(bundle, threads=threads) for bundle in bundles}
    first = next(iter(explainers.values()))
    pictures = find_pictures(images)[:limit]
    pixels = [prepare(path, first.manifest).pixels for path in pictures]
    classes = [int(first.session.predict(p[None])[0].argmax()) for p in pixels]

    contenders: dict[str, Any] = {}
    extra: dict[str, dict[str, Any]] = {}
    for explainer in explainers.values():
        for estimator in ("paper", "fast"):
            label = f"vitcx {explainer.manifest.precision} {explainer.session.engine} {estimator}"

            def ours(i: int, e: Any, s: str) -> Any:
                return e.explain(pixels[i], classes[i], estimator=s).saliency[0]

            contenders[label] = partial(ours, e=explainer, s=estimator)
            contenders[label](0)
            settings = {"estimator": estimator}
            extra[label] = {
                "stages": stages(explainer, pixels[0], settings),
                "packed_per_second": packed_rate(explainer, pixels, settings),
            }
    contenders[REFERENCE] = lambda i: plain.loop(module, pixels[i], classes[i])
    contenders["PyTorch, batched"] = lambda i: plain.batched(module, pixels[i], classes[i])
    if not quick:
        contenders["PyTorch, batched, bf16"] = lambda i: plain.batched(
            module, pixels[i], classes[i], half=True
        )
    if compiled:
        fast = torch.compile(module, dynamic=True)
        contenders["PyTorch, compiled"] = lambda i: plain.batched(
            module, pixels[i], classes[i], forward=fast
        )
    reference = REFERENCE
    agreement: list[float] = []
    if authors_code is not None:
        authors = load_authors(authors_code)
        trained, _ = timm_model(name, checkpoint)  # it asks for gradients
        reference = "the authors' code"
        contenders[reference] = lambda i: run_authors(authors, trained, pixels[i], classes[i])
        for image, target in zip(pixels, classes, strict=True):
            theirs = run_authors(authors, trained, image, target, noise=False)
            mine = first.explain(image, target, noise_std=0.0).saliency[0]
            agreement.append(float(spearmanr(theirs.ravel(), mine.ravel()).statistic))

    maps = {label: [call(i) for i in range(len(pixels))] for label, call in contenders.items()}
    samples = interleave(
        contenders,
        len(pixels),
        rounds,
        lambda label: console.is_terminal and print(".", end="", file=sys.stderr, flush=True),
    )
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, *first.manifest.input_size))
    rate = matrix_rate()
    results: dict[str, Any] = {}
    for label, found in samples.items():
        questions = [
            Question(p, m, c) for p, m, c in zip(pixels, maps[label], classes, strict=True)
        ]
        curves = list(score_curves(first.session, questions, steps=steps))
        results[label] = {
            **summary(found),
            **extra.get(label, {}),
            "insertion_minus_deletion": bootstrap([c.difference for c in curves]).mean,
            "speedup": float(np.median(np.divide(samples[reference], found))),
        }
        if "stages" in results[label]:
            forward = results[label]["stages"]["score"]
            count = first.explain(pixels[0], classes[0]).settings["forward_passes"] - 1
            passes = count / (2 if label.endswith("fast") else 1)
            results[label]["share_of_matrix_rate"] = (
                passes * counter.get_total_flops() / forward / rate
            )
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, no GPU used",
        "versions": {p: metadata.version(p) for p in ("torch", "timm", "onnxruntime", "numpy")},
        "model": name,
        "weights": source,
        "pictures": len(pixels),
        "rounds": rounds,
        "matrix_gflops": rate / 1e9,
        "forward_gflop": counter.get_total_flops() / 1e9,
        "peak_memory_bytes": peak_memory(),
        "reference": reference,
        "rank_correlation_with_authors_noise_off": agreement or None,
        "results": results,
    }
    _print(console, report)
    line = json.dumps(report, ensure_ascii=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(line)


def _print(console: Console, report: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("what", no_wrap=True)
    for heading in ("p50", "p99", "times faster", "packed/s", "ins - del"):
        table.add_column(heading, justify="right")
    for label, row in report["results"].items():
        packed = row.get("packed_per_second")
        table.add_row(
            label,
            f"{row['p50']:.3f} s",
            f"{row['p99']:.3f} s",
            f"{row['speedup']:.2f}",
            f"{packed:.2f}" if packed else "-",
            f"{row['insertion_minus_deletion']:.3f}",
        )
    console.print(table)
    console.print(f"times faster: than {report['reference']}, call by call", highlight=False)


if __name__ == "__main__":
    main()
