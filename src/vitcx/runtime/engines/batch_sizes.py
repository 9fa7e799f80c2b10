"""The sizes of a session's recorded passes.

A recorded pass always computes all its rows. So that a short batch does not cost a full one, a few
sizes are recorded: of 64 rows, 140 cost 64 + 64 + 16, and not 192.
"""

from __future__ import annotations

from collections.abc import Iterable


def batch_sizes(batch_size: int) -> tuple[int, ...]:
    """A full batch, a half and a quarter, rounded up, each size once; the smallest first."""
    return tuple(sorted({-(-batch_size // parts) for parts in (1, 2, 4)}))


def smallest_that_holds(rows: int, sizes: Iterable[int]) -> int:
    """The smallest size that holds so many rows."""
    return min(size for size in sizes if size >= rows)
