"""The table of a comparison of speed."""

from __future__ import annotations

from typing import Any

from rich.table import Table

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


def draw_table(report: dict[str, Any]) -> Table:
    """A row for each contender of a report of `benchmarks.throughput`."""
    reference = report["reference"]
    table = Table(box=None, pad_edge=False, caption=f"times faster, minus: than {reference}")
    table.add_column("what", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for label, row in report["results"].items():
        ratio, paired = row["times_faster"], row["minus_reference"]
        interval = f"{paired['mean']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]"
        table.add_row(
            label,
            f"{row['p50']:.3f} s",
            f"{row['p99']:.3f} s",
            f"{ratio['median']:.2f} [{ratio['q25']:.2f}, {ratio['q75']:.2f}]",
            _or_dash(row, "outside_forward_passes", "{:.1%}"),
            _or_dash(row, "share_of_matrix_rate", "{:.0%}"),
            f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else "-",
            _or_dash(row, "packed_per_second", "{:.2f}"),
            f"{row['insertion_minus_deletion']:.3f}",
            "-" if label == reference else interval,
        )
    return table


def _or_dash(row: dict[str, Any], key: str, form: str) -> str:
    return form.format(row[key]) if key in row else "-"
