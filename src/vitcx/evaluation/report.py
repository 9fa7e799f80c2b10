"""What an evaluation found, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vitcx.evaluation.metrics import METRICS
from vitcx.runtime.digests import replacing
from vitcx.runtime.errors import MissingExtraError

Summary = Mapping[str, Mapping[str, Any]]


def draw_table(summary: Summary) -> Table:
    """A table with a row for each method, 95 % intervals below the figures. It fits 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("method", overflow="fold", min_width=12)
    headings = (
        "images",
        "masks",
        "deletion ↓",
        "insertion ↑",
        "SRG ↑",
        "pointing ↑",
        "localised",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in summary.items():
        pointing = found.get("pointing_small")
        place = found.get("localisation")
        masks = found.get("masks")
        table.add_row(
            name,
            str(found["images"]),
            f"{masks['mean']:.1f}" if masks else "-",
            *(_figure(found[key]) for key in ("deletion", "insertion", "difference")),
            f"{pointing['mean']:.0%} of {pointing['count']}" if pointing else "-",
            f"{place['accuracy']:.0%}" if place else "-",
        )
    return table


def draw_metrics(summary: Summary) -> Table | None:
    """A table of the further metrics, with a row for each method; None where none was measured."""
    names = [name for name in METRICS if any(name in found for found in summary.values())]
    if not names:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("method", overflow="fold", min_width=12)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for method, found in summary.items():
        table.add_row(method, *(_figure(found[n]) if n in found else "-" for n in names))
    return table


def _figure(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.3f}\n{interval['low']:.2f}–{interval['high']:.2f}"


def notes(summary: Summary) -> list[str]:
    """Lines that say what the figures are, and what pointing is to be held against."""
    lines = ["SRG: insertion minus deletion on one canvas (Symmetric Relevance Gain)"]
    found = next((s["pointing_small"] for s in summary.values() if "pointing_small" in s), None)
    if found is not None:
        lines.append(
            f"pointing: the {found['count']} pictures whose objects cover less than a quarter; "
            f"there the middle hits {found['centre']:.0%}, a random point {found['chance']:.0%}"
        )
    measured = [name for name in METRICS if any(name in each for each in summary.values())]
    return lines + [f"{name}: {METRICS[name]}" for name in measured]


def draw_curves(summary: Summary, path: Path) -> None:
    """Mean deletion and insertion curves of every method, as a PNG or SVG file.

    Raises
    ------
    MissingExtraError
        Without matplotlib (extra ``plot``).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("the figure", "matplotlib", "plot") from None
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for place, side in zip(axes, ("deletion", "insertion"), strict=True):
        for name, found in summary.items():
            curve = found[f"{side}_curve"]
            place.plot(
                np.linspace(0, 1, len(curve)), curve, label=f"{name} {found[side]['mean']:.3f}"
            )
        place.set_xlabel("share of pixels deleted" if side == "deletion" else "share inserted")
        place.set_title(f"{side} ({'lower' if side == 'deletion' else 'higher'} is more faithful)")
        place.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("mean score of the target")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
