"""`vitcx bench`: how fast explanations are here, on your model, engines and batch sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from vitcx.commands.options import imprecise_option
from vitcx.evaluation.speed import (
    describe_machine,
    interleave,
    matrix_rate,
    packed_rate,
    peak_memory,
    stages,
    summary,
)
from vitcx.runtime.engines.registry import ENGINE_NAMES
from vitcx.runtime.errors import EngineError, MissingExtraError
from vitcx.runtime.explainer import load
from vitcx.runtime.pictures.preprocess import prepare


@click.command("bench")
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    default=("demo",),
    show_default=True,
    help="'demo' or a bundle's folder; several compare models or precisions.",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("auto",),
    show_default=True,
    type=click.Choice(ENGINE_NAMES),
    help="May be given several times.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(min=1),
    help="May be given several times.  [default: the engine's]",
)
@click.option(
    "--estimator",
    "estimators",
    multiple=True,
    default=("paper", "fast"),
    show_default=True,
    type=click.Choice(("paper", "fast", "antithetic")),
)
@click.option("--threads", type=int, help="CPU threads of a forward pass.  [default: every core]")
@imprecise_option
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="One round.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
def command(
    images: tuple[Path, ...],
    bundles: tuple[str, ...],
    engines: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    estimators: tuple[str, ...],
    threads: int | None,
    allow_imprecise: bool,
    rounds: int,
    quick: bool,
    out: Path | None,
) -> None:
    """Time explanations of IMAGES (without any: of noise, whose number of masks is its own).

    All combinations are loaded at once and take turns; an engine that cannot run here is left out,
    and the reason is printed. The last line of the output is JSON.
    """
    console = Console(width=None if Console().is_terminal else 120)
    rounds = 1 if quick else rounds
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[int], Any]] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        for bundle in bundles:
            for engine in engines:
                for size in batch_sizes or (None,):
                    try:
                        explainer = stack.enter_context(
                            load(bundle, engine, threads, size, allow_imprecise)
                        )
                    except (EngineError, MissingExtraError) as error:
                        left_out[f"{bundle} on {engine}"] = str(error)
                        continue
                    manifest = explainer.manifest
                    if images:
                        pixels = [prepare(path, manifest).pixels for path in images]
                    else:
                        rng = np.random.default_rng(0)
                        shape = (3, *manifest.input_size)
                        pixels = [rng.standard_normal(shape, dtype=np.float32) for _ in range(2)]
                    for estimator in estimators:
                        settings: dict[str, Any] = {"estimator": estimator}
                        name = (
                            f"{manifest.model_name} {manifest.precision} "
                            f"{explainer.session.engine} batch {explainer.session.batch_size} "
                            f"{estimator}"
                        )
                        explained = explainer.explain(pixels[0], **settings)  # also warms it

                        def call(item: int, e: Any, p: Any, s: Any) -> Any:
                            return e.explain(p[item], **s)

                        calls[name] = partial(call, e=explainer, p=pixels, s=settings)
                        rows[name] = {
                            "masks": len(explained.masks),
                            "stages": stages(explainer, pixels[0], settings),
                            "packed_per_second": packed_rate(explainer, pixels, settings),
                        }
        if not calls:
            raise EngineError("; ".join(dict.fromkeys(left_out.values())))
        samples = interleave(calls, len(images) or 2, rounds)
    for name, found in samples.items():
        rows[name] |= summary(found)
    table = Table(box=None, pad_edge=False)
    table.add_column("what", no_wrap=True)
    for heading in ("p50", "p99", "packed/s", "outside forwards"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['p50']:.3f} s",
            f"{row['p99']:.3f} s",
            f"{row['packed_per_second']:.2f}",
            f"{row['stages']['outside']:.1%}",
        )
    console.print(table)
    for place, reason in left_out.items():
        console.print(f"left out: {place}: {reason}", highlight=False, soft_wrap=True)
    report = {
        "machine": describe_machine(),
        "matrix_gflops": matrix_rate() / 1e9,
        "peak_memory_bytes": peak_memory(),
        "left_out": left_out,
        "results": rows,
    }
    line = json.dumps(report, ensure_ascii=False)
    if out is not None:
        out.write_text(line + "\n", encoding="utf-8")
    click.echo(line)
