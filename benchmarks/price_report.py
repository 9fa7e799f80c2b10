"""Figures of price and faithfulness, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from vitcx.evaluation.intervals import bootstrap
from vitcx.evaluation.records import Record


def summarise(
    records: Sequence[Record], labels: Mapping[str, str], reference: str | None
) -> dict[str, dict[str, Any]]:
    """By label: price, SRG by canvas, and SRG minus the reference's, with 95 % intervals.

    Parameters
    ----------
    labels : what each method is called.
    reference : a label; differences are over the pictures that both have.
    """
    by_key: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        by_key.setdefault((record["method"], record["canvas"]), {})[record["image"]] = record
    spec_of = {label: spec for spec, label in labels.items()}
    canvases = list(dict.fromkeys(record["canvas"] for record in records))
    result: dict[str, dict[str, Any]] = {}
    for label, spec in spec_of.items():
        lines = {c: by_key[spec, c] for c in canvases if (spec, c) in by_key}
        if not lines:
            continue
        priced = list(next(iter(lines.values())).values())
        row: dict[str, Any] = {
            "method": spec,
            "images": len(priced),
            "passes": float(np.mean([line["passes"] for line in priced])),
            "seconds": statistics.median(line["seconds"] for line in priced),
        }
        for figure in ("srg", "insertion", "deletion"):
            row[figure] = {
                canvas: vars(bootstrap([line[figure] for line in found.values()]))
                for canvas, found in lines.items()
            }
        if reference is not None:
            row["minus_reference"] = {}
            for canvas, found in lines.items():
                other = by_key.get((spec_of[reference], canvas), {})
                if common := sorted(found.keys() & other.keys()):
                    row["minus_reference"][canvas] = vars(
                        bootstrap([found[i]["srg"] - other[i]["srg"] for i in common])
                    )
        result[label] = row
    return result


def keep_common(records: Sequence[Record]) -> list[Record]:
    """Those of the pictures that every method has, on every canvas that any method has."""
    pictures: dict[tuple[str, str], set[str]] = {}
    for record in records:
        pictures.setdefault((record["method"], record["canvas"]), set()).add(record["image"])
    common = set.intersection(*pictures.values()) if pictures else set()
    return [record for record in records if record["image"] in common]


def draw_table(name: str, found: Mapping[str, Any], reference: str | None) -> Table:
    canvases = list(next(iter(found.values()))["srg"]) if found else []
    table = Table(title=name, box=None, pad_edge=False, title_justify="left")
    table.add_column("method", no_wrap=True)
    for heading in ("images", "passes", "seconds", *(f"SRG, {c}" for c in canvases)):
        table.add_column(heading, justify="right")
    for canvas in canvases if reference else ():
        table.add_column(f"minus {reference}, {canvas}", justify="right")
    for label, row in found.items():
        paired = row.get("minus_reference", {})
        table.add_row(
            label,
            str(row["images"]),
            f"{row['passes']:.0f}",
            f"{row['seconds']:.3f}",
            *(f"{row['srg'][c]['mean']:.3f}" if c in row["srg"] else "-" for c in canvases),
            *(
                "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**paired[c]) if c in paired else "-"
                for c in canvases
                if reference
            ),
        )
    return table
