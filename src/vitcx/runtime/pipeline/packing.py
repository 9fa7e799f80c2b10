"""Pack rows of any number of pictures into the engine's fixed-size batches.

A batch holds the rows of as many pictures as fit, as long as they are alike: pixels under masks of
one resolution, or tokens in teams of one size. `Pipeline` decides when a batch runs, `turns` whose
rows are next; this module only knows which rows are in it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vitcx.kernels.host.blend import MOST_ROWS, Perturbation
from vitcx.runtime.engines.session import PixelBatch, Scores, Session, TeamBatch
from vitcx.runtime.errors import EngineError
from vitcx.runtime.pipeline.scoring import Likeness, PixelRows, Scoring, TokenRows
from vitcx.runtime.pipeline.turns import Arrivals, Turns


@dataclass(frozen=True)
class PackedBatch:
    """A batch and, row by row, whose it is: (picture's scoring, mask index, row kind)."""

    batch: PixelBatch | TeamBatch
    owners: list[tuple[Scoring, int, int]]

    @property
    def scorings(self) -> list[Scoring]:
        """Those with a row in this batch, each once, in packing order."""
        return list(dict.fromkeys(scoring for scoring, _, _ in self.owners))

    def deliver(self, scores: Scores) -> list[Scoring]:
        """Give every row's scores to its picture; returns those whose last row this was.

        Raises
        ------
        EngineError
            There are fewer rows or classes than were asked for: nothing is delivered.
        """
        rows = self.batch.rows
        most = max((int(s.targets.max(initial=0)) for s in self.scorings), default=0)
        found = scores.probabilities.shape
        if len(found) != 2 or found[0] < rows or found[1] <= most:
            raise EngineError(
                f"the engine gave scores {found} for {rows} rows and classes up to {most}: export "
                "the model again, or take another engine"
            )
        for row, (scoring, mask, kind) in enumerate(self.owners):
            scoring.finish_row(kind, mask, scores.probabilities[row])
            scoring.seconds["blend"] += scores.blend_seconds / rows
            scoring.seconds["score"] += scores.forward_seconds / rows
        return [scoring for scoring in self.scorings if scoring.done]


@dataclass
class Packer:
    """Packs the rows it holds; not safe to share between threads without a lock.

    Parameters
    ----------
    session : whose batches are filled.
    line : the pictures with rows that wait, and whose are next.
    """

    session: Session
    line: Arrivals | Turns
    _pending: int = field(default=0, init=False)

    def add(self, scoring: Scoring, client: str = "") -> None:
        """Queue the rows of a client's picture. One without rows is done already."""
        if scoring.pending:
            self.line.add(scoring, client)
            self._pending += scoring.pending

    def cancel(self, scoring: Scoring) -> None:
        """Drop what is left of a picture's rows."""
        if scoring in self.line:
            self._pending -= scoring.pending
            self.line.remove(scoring)

    @property
    def pending_rows(self) -> int:
        """Rows not yet packed."""
        return self._pending

    @property
    def is_full(self) -> bool:
        """Whether the rows that wait can fill a batch."""
        return self._pending >= self.session.batch_size and self._full() is not None

    def pack(self) -> PackedBatch:
        """Take the next rows that are alike, at most a batch; they are then no longer pending.

        Rows of a kind that can fill a batch, where the line prefers these; else rows like the first
        of the picture whose turn it is. A long picture has half a batch at a time.
        """
        line = self.line.in_order()
        if not line:
            return PackedBatch(PixelBatch(), [])
        full = self._full() if self.line.prefers_full else None
        chosen = full or self._likeness(line[0])[0]
        batch = PixelBatch() if chosen[0] == "pixels" else TeamBatch()
        size = self.session.batch_size
        if self.line.is_long(line[0]):
            size = max(1, size // 2)  # who comes next waits for less
        owners: list[tuple[Scoring, int, int]] = []
        for scoring in line:
            likeness, run = self._likeness(scoring)
            room = size - len(owners)
            if room == 0:
                break
            if likeness != chosen:
                continue
            taken = range(scoring.next_row, scoring.next_row + min(run, room))
            _put(batch, scoring.rows, taken)
            owners += [(scoring, *scoring.rows.place(row)) for row in taken]
            scoring.next_row = taken.stop
        self._pending -= len(owners)
        packed = PackedBatch(batch, owners)
        self.line.served(scoring for scoring, _, _ in owners)
        for scoring in packed.scorings:
            if not scoring.pending:
                self.line.remove(scoring)
        return packed

    def _full(self) -> Likeness | None:
        """The first kind of rows of which a whole batch waits."""
        found: Counter[Likeness] = Counter()
        for scoring in self.line:
            likeness, run = self._likeness(scoring)
            found[likeness] += run
            if found[likeness] >= self.session.batch_size:
                return likeness
        return None

    @staticmethod
    def _likeness(scoring: Scoring) -> tuple[Likeness, int]:
        return scoring.rows.alike(scoring.next_row)


def _put(batch: PixelBatch | TeamBatch, rows: PixelRows | TokenRows, taken: range) -> None:
    if isinstance(batch, TeamBatch) and isinstance(rows, TokenRows):
        batch.tokens.append(rows.tokens)
        for row in taken:
            mask, kind = rows.place(row)
            batch.pictures.append(len(batch.tokens) - 1)
            batch.patches.append(rows.patches[kind][mask])
        return
    assert isinstance(batch, PixelBatch)
    assert isinstance(rows, PixelRows)
    batch.images.append(rows.image)
    row, free = taken.start, batch.rows
    while row < taken.stop:
        mask = rows.place(row)[0]
        end = min((mask + 1) * len(rows.kinds), taken.stop, row + MOST_ROWS)
        places = tuple((rows.place(r)[1], free + r - row) for r in range(row, end))
        batch.masks.append(rows.masks[mask])
        batch.perturbations.append(
            Perturbation(
                image=len(batch.images) - 1,
                mask=len(batch.masks) - 1,
                noise=mask,
                seed=rows.seed,
                scale=rows.noise_std,
                rows=places,
                sharp=rows.sharp,
            )
        )
        free += end - row
        row = end
    batch.rows = free
