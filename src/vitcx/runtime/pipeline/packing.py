"""Pack rows of any number of pictures into the engine's fixed-size batches.

A `Scoring` is one picture's rows. Rows are packed in the order in which the pictures were added; a
batch holds the rows of as many pictures as fit, as long as they are alike: pixels under masks of
one resolution, or tokens in teams of one size. `Pipeline` decides when a batch runs; this module
only knows which rows are in it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.blend import MOST_ROWS, Perturbation
from vitcx.runtime.engines.session import PixelBatch, Scores, Session, TeamBatch
from vitcx.runtime.errors import EngineError

FloatArray = NDArray[np.float32]
# What rows must share to be in one batch: what they are made of, and its sizes.
Likeness = tuple[str, int, int]


@dataclass(frozen=True)
class PixelRows:
    """Rows that show a picture through masks.

    Attributes
    ----------
    image : (3,H,W) float32.
    masks : (K,h,w) float32.
    kinds : of each mask's rows, in the order in which they are scored.
    noise_std, seed : of the noise; 0 draws none.
    sharp : whether the masks are teams, sharp at the patches' edges.
    """

    image: FloatArray
    masks: FloatArray
    kinds: Sequence[int]
    noise_std: float
    seed: int
    sharp: bool = False

    def __len__(self) -> int:
        return len(self.masks) * len(self.kinds)

    def place(self, row: int) -> tuple[int, int]:
        """(mask, kind) of a row: the kinds of one mask stay together, its noise is made once."""
        mask, kind = divmod(row, len(self.kinds))
        return mask, self.kinds[kind]

    def alike(self, row: int) -> tuple[Likeness, int]:
        """What the row must share with its batch, and how many rows from it on are like it."""
        return ("pixels", *self.masks.shape[1:3]), len(self) - row


@dataclass(frozen=True)
class TokenRows:
    """Rows that show a picture's tokens in teams.

    Attributes
    ----------
    tokens : (T,W) float32, prefix tokens first.
    patches : by kind, in the order in which they are scored, (K,n) int64 patches of each team.
    """

    tokens: FloatArray
    patches: Mapping[int, NDArray[np.int64]]

    def __len__(self) -> int:
        return sum(len(teams) for teams in self.patches.values())

    def place(self, row: int) -> tuple[int, int]:
        """(mask, kind) of a row: one kind after the other, for their teams may differ in size."""
        for kind, teams in self.patches.items():
            if row < len(teams):
                return row, kind
            row -= len(teams)
        raise IndexError(row)

    def alike(self, row: int) -> tuple[Likeness, int]:
        """What the row must share with its batch, and how many rows from it on are like it."""
        mask, kind = self.place(row)
        teams = self.patches[kind]
        return ("tokens", teams.shape[1], 0), len(teams) - mask


@dataclass(eq=False)
class Scoring:
    """One picture's rows, and the scores that have come back.

    Attributes
    ----------
    rows : what is shown to the model.
    masks : how many there are.
    targets : (T,) class indices whose scores are kept.
    scores : by row kind, (K,T) float32, filled as batches run.
    seconds : time by stage, this picture's share of each batch.
    """

    rows: PixelRows | TokenRows
    masks: int
    kinds: Sequence[int]
    targets: NDArray[np.int64]
    scores: dict[int, FloatArray] = field(init=False)
    seconds: dict[str, float] = field(init=False)
    next_row: int = field(default=0, init=False)
    _missing: int = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.masks, len(self.targets))
        self.scores = {kind: np.empty(shape, np.float32) for kind in self.kinds}
        self.seconds = {"blend": 0.0, "score": 0.0}
        self._missing = len(self.rows)

    @property
    def pending(self) -> int:
        """Rows that no batch has taken yet."""
        return len(self.rows) - self.next_row

    @property
    def done(self) -> bool:
        """Whether every row has been scored."""
        return self._missing == 0

    def finish_row(self, kind: int, mask: int, probabilities: FloatArray) -> None:
        """Keep one scored row: (C,) float32."""
        self.scores[kind][mask] = probabilities[self.targets]
        self._missing -= 1


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

    A picture that has had `fair_batches` full of rows lets others go first, a batch at a time.
    """

    session: Session
    fair_batches: int | None = None
    _waiting: deque[Scoring] = field(default_factory=deque, init=False)
    _pending: int = field(default=0, init=False)

    def add(self, scoring: Scoring) -> None:
        """Queue a picture's rows behind the others'. One without rows is done already."""
        if scoring.pending:
            self._waiting.append(scoring)
            self._pending += scoring.pending

    def cancel(self, scoring: Scoring) -> None:
        """Drop what is left of a picture's rows."""
        if scoring in self._waiting:
            self._waiting.remove(scoring)
            self._pending -= scoring.pending

    @property
    def pending_rows(self) -> int:
        """Rows not yet packed."""
        return self._pending

    @property
    def is_full(self) -> bool:
        """Whether the rows that wait can fill a batch."""
        return self._pending >= self.session.batch_size and self._full() is not None

    def run_batch(self) -> None:
        """Pack and score one batch; as full as the waiting rows allow."""
        packed = self.pack()
        if packed.batch.rows:
            packed.deliver(self.session.score_rows(packed.batch))

    def run_all(self, scorings: Iterable[Scoring]) -> None:
        """Score every row of `scorings` and of those waiting before them."""
        for scoring in scorings:
            self.add(scoring)
            while self.is_full:
                self.run_batch()
        while self._pending:
            self.run_batch()

    def pack(self) -> PackedBatch:
        """Take the next rows that are alike, at most a batch; they are then no longer pending.

        Where rows of one kind can fill a batch, those; else the kind of the row that waits longest.
        """
        if not self._waiting:
            return PackedBatch(PixelBatch(), [])
        chosen = self._full() or self._likeness(self._waiting[0])[0]
        batch = PixelBatch() if chosen[0] == "pixels" else TeamBatch()
        owners: list[tuple[Scoring, int, int]] = []
        for scoring in list(self._waiting):
            likeness, run = self._likeness(scoring)
            room = self.session.batch_size - len(owners)
            if room == 0:
                break
            if likeness != chosen:
                continue
            taken = range(scoring.next_row, scoring.next_row + min(run, room))
            _put(batch, scoring.rows, taken)
            owners += [(scoring, *scoring.rows.place(row)) for row in taken]
            scoring.next_row = taken.stop
            if not scoring.pending:
                self._waiting.remove(scoring)
        self._pending -= len(owners)
        self._take_turns(owners)
        return PackedBatch(batch, owners)

    def _take_turns(self, owners: list[tuple[Scoring, int, int]]) -> None:
        """Send pictures that have had much, and want more, to the end of the line."""
        most = (self.fair_batches or 0) * self.session.batch_size
        for scoring in dict.fromkeys(scoring for scoring, _, _ in owners):
            if most and scoring.pending and scoring.next_row >= most:
                self._waiting.remove(scoring)
                self._waiting.append(scoring)

    def _full(self) -> Likeness | None:
        """The first kind of rows of which a whole batch waits."""
        found: Counter[Likeness] = Counter()
        for scoring in self._waiting:
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
