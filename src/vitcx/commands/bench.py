"""`vitcx bench`: how fast explanations are here, on your model, engines and batch sizes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from vitcx.commands.options import device_option, imprecise_option
from vitcx.commands.terminal import make_console, plain, say, say_json
from vitcx.evaluation.speed import (
    describe_machine,
    interleave,
    matrix_rate,
    packed_rate,
    peak_memory,
    stages,
    summary,
)
from vitcx.runtime.digests import replacing
from vitcx.runtime.engines.registry import ENGINE_NAMES
from vitcx.runtime.errors import EngineError, InputError, MissingExtraError
from vitcx.runtime.explainer import Explainer, load
from vitcx.runtime.method.estimators.registry import ESTIMATORS
from vitcx.runtime.method.registry import METHODS
from vitcx.runtime.pictures.preprocess import prepare
from vitcx.runtime.presets import PRESET_NAMES

_NOISE_PICTURES = 2


@click.command("bench")
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    default=("demo",),
    show_default=True,
    help="'demo' or a bundle's folder. Repeat it to compare models or precisions.",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("auto",),
    show_default=True,
    type=click.Choice(ENGINE_NAMES),
    metavar="NAME",
    help=f"One of {', '.join(ENGINE_NAMES)}. Repeat it to compare engines.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(min=1),
    help="Repeat it to compare sizes.  [default: the engine's]",
)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    type=click.Choice(PRESET_NAMES),
    help="Repeat it to compare presets.  [default: paper and quick]",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(tuple(METHODS)),
    help="Repeat it to compare methods.",
)
@click.option(
    "--estimator",
    "estimators",
    multiple=True,
    type=click.Choice(tuple(ESTIMATORS)),
    metavar="NAME",
    help=f"One of {', '.join(ESTIMATORS)}. Repeat it to compare estimators.",
)
@click.option("--threads", type=int, help="CPU threads of a forward pass.  [default: every core]")
@device_option
@imprecise_option
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often each picture is timed.",
)
@click.option("--quick", is_flag=True, help="One round.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the JSON to this file.")
def command(
    images: tuple[Path, ...],
    bundles: tuple[str, ...],
    engines: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    presets: tuple[str, ...],
    methods: tuple[str, ...],
    estimators: tuple[str, ...],
    threads: int | None,
    device: int | None,
    allow_imprecise: bool,
    rounds: int,
    quick: bool,
    out: Path | None,
) -> None:
    """Measure how fast explanations are on this machine.

    Times explanations of IMAGES. Give your own: the time depends on the number of masks, and
    without IMAGES noise is explained. All combinations of the options are loaded at once and take
    turns. An engine that cannot run here is left out, with the reason. The last line of the output
    is JSON.

    \b
    Example:
      vitcx bench photo.jpg --engine onnxruntime --engine openvino
    """
    rounds = 1 if quick else rounds
    if out is not None and out.is_dir():
        raise InputError(f"--out '{out}' is a folder: give a file")
    bundles = tuple(dict.fromkeys(bundles))
    chosen = [
        {kind: name}
        for kind, names in (("preset", presets), ("method", methods), ("estimator", estimators))
        for name in dict.fromkeys(names)
    ] or [{"preset": "paper"}, {"preset": "quick"}]
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[int], Any]] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        for bundle, engine, size in itertools.product(
            bundles, dict.fromkeys(engines), dict.fromkeys(batch_sizes) or (None,)
        ):
            try:
                explainer = stack.enter_context(
                    load(bundle, engine, threads, size, allow_imprecise, device)
                )
            except (EngineError, MissingExtraError) as error:
                left_out[f"{bundle} on {engine}"] = str(error)
                continue
            shown = bundle if len(bundles) > 1 else ""
            for settings in chosen:
                name = f"{_name(explainer, shown)} {' '.join(settings.values())}"
                if name in rows:
                    left_out[f"{bundle} on {engine}"] = f"it is measured already, as {name}"
                    continue
                rows[name], calls[name] = _prepare(explainer, images, settings)
        if not calls:
            raise EngineError("; ".join(dict.fromkeys(left_out.values())))
        samples = interleave(calls, len(images) or _NOISE_PICTURES, rounds)
    for name, found in samples.items():
        rows[name] |= summary(found)
    make_console().print(_table(rows))
    for place, reason in left_out.items():
        say(f"left out: {place}: {reason}")
    report = {
        "machine": describe_machine(),
        "matrix_gflops": matrix_rate() / 1e9,
        "peak_memory_bytes": peak_memory(),
        "left_out": left_out,
        "results": rows,
    }
    if out is not None:
        with replacing(out) as path:
            path.write_text(json.dumps(report, ensure_ascii=True) + "\n", encoding="utf-8")
    say_json(report)


def _name(explainer: Explainer, bundle: str) -> str:
    """What the rows of an explainer are called.

    `bundle` tells apart bundles of one model; "" where there is only one.
    """
    manifest, session = explainer.manifest, explainer.session
    where = f"{bundle}: " if bundle else ""
    return (
        f"{where}{manifest.model_name} {manifest.precision} {session.engine} "
        f"batch {session.batch_size}"
    )


def _prepare(
    explainer: Explainer, images: Sequence[Path], settings: dict[str, Any]
) -> tuple[dict[str, Any], Callable[[int], Any]]:
    """What is measured before the turns are taken, and the call to time."""
    pixels = _pixels(explainer, images)
    explained = explainer.explain(pixels[0], **settings)  # also warms it
    row = {
        "masks": len(explained.masks),
        "stages": stages(explainer, pixels[0], settings),
        "packed_per_second": packed_rate(explainer, pixels, settings),
    }
    return row, lambda item: explainer.explain(pixels[item], **settings)


def _pixels(explainer: Explainer, images: Sequence[Path]) -> list[NDArray[np.float32]]:
    if images:
        return [prepare(path, explainer.manifest).pixels for path in images]
    rng = np.random.default_rng(0)
    shape = (3, *explainer.manifest.input_size)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(_NOISE_PICTURES)]


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("what", overflow="fold")
    for heading in ("p50", "p99", "packed/s", "outside\nforwards"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(
            plain(name),
            f"{row['p50']:.3f} s",
            f"{row['p99']:.3f} s",
            f"{row['packed_per_second']:.2f}",
            f"{row['stages']['outside']:.1%}",
        )
    return table
