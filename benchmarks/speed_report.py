"""The figures of a comparison of speed, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from vitcx.evaluation.intervals import bootstrap
from vitcx.evaluation.records import Records
from vitcx.evaluation.speed import ratios, summary

HEADINGS = (
    "p50",
    "p99",
    "times faster [quartiles]",
    "outside",
    "matrix rate",
    "peak MB",
    "packed/s",
    "ins - del",
    "minus reference",
)


def speed_results(
    records: Records, labels: Sequence[str], names: list[str], rounds: int, report: dict[str, Any]
) -> dict[str, Any]:
    """Figures by contender, of the turns that `benchmarks.throughput` kept.

    Parameters
    ----------
    report : with the rates of the machine and of a pass, and the reference's label.
    """
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
            keys = [k for k in facts[0] if k not in ("passes", "masks")]
            row["stages"] = {k: statistics.median(f[k] for f in facts) for k in keys}
            row["outside_forward_passes"] = statistics.median(
                1 - (f["encode"] + f["score"]) / f["total"] for f in facts
            )
            row["share_of_matrix_rate"] = statistics.median(
                (f["passes"] - 1) * flops / f["score"] for f in facts
            )
            row["masks"] = [f["masks"] for f in facts]
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


def draw_table(report: dict[str, Any]) -> Table:
    """A row for each contender."""
    reference = report["reference"]
    table = Table(box=None, pad_edge=False, caption=f"times faster, minus: than {reference}")
    table.add_column("what", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")

    def or_dash(row: dict[str, Any], key: str, form: str) -> str:
        return form.format(row[key]) if key in row else "-"

    for label, row in report["results"].items():
        table.add_row(
            label,
            f"{row['p50']:.3f} s",
            f"{row['p99']:.3f} s",
            "{median:.2f} [{q25:.2f}, {q75:.2f}]".format(**row["times_faster"]),
            or_dash(row, "outside_forward_passes", "{:.1%}"),
            or_dash(row, "share_of_matrix_rate", "{:.0%}"),
            f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else "-",
            or_dash(row, "packed_per_second", "{:.2f}"),
            f"{row['insertion_minus_deletion']:.3f}",
            "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["minus_reference"]),
        )
    return table
