"""A picture's rows, what they must share to be in one batch, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
