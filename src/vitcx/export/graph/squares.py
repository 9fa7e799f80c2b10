"""Pictures with a changed square each, and how well a grid moves where the squares are.

NumPy alone, so that graphs without a PyTorch model are judged by the same rule as models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.upsampling import upsample

Array = NDArray[np.float64]

# Squares that are changed, and their side as a part of the picture's short side: about a patch.
PROBES = 9
_SIDE = 1 / 12
_SEED = 20240815
# Hits that a layout must have. Right ones have 7 to 9, on random weights too; a wrong one has each
# by chance, one time in ten.
LEAST_HITS = 5
# Changes below this part of the largest one count as equal: none is no better evidence than little.
_FLOOR = 0.1
# How far the places that moved may lie to one side of the changes on average, in cells: a grid that
# is off by one token is off by 1 everywhere.
_MOST_OFFSET = 0.75
_LEAST_CELLS = 3
_MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Fit:
    """How well a grid lies: more hits are better, then a smaller distance (in cells)."""

    hits: int
    distance: float

    @property
    def lies_right(self) -> bool:
        return self.hits >= LEAST_HITS


@dataclass(frozen=True)
class Squares:
    """Pictures of which all but the first have one square changed.

    Attributes
    ----------
    images : (1 + PROBES, C, H, W) float32, normalised.
    centres : (PROBES, 2) float64, (y, x) of the squares' centres in pixels.
    side : of the squares, in pixels.
    """

    images: NDArray[np.float32]
    centres: Array
    side: int

    @classmethod
    def of(cls, size: tuple[int, int], channels: int) -> Squares:
        """Squares of a smooth picture of `size` (H, W)."""
        rng = np.random.default_rng(_SEED)
        height, width = size
        base = upsample(rng.standard_normal((channels, 5, 5), dtype=np.float32), size)
        side = max(2, round(min(size) * _SIDE))
        images, centres = [base], []
        # Places spread evenly and in no symmetry: a grid that is transposed or flipped is not met
        # by chance (a Kronecker sequence of the plastic number).
        places = (np.arange(1, PROBES + 1)[:, None] * (0.7548776662466927, 0.5698402909980532)) % 1
        for place in places:
            top, left = ((0.08 + 0.84 * place) * (height - side, width - side)).astype(int)
            changed = base.copy()
            noise = rng.standard_normal((channels, side, side), dtype=np.float32)
            changed[:, top : top + side, left : left + side] += 3 * noise
            images.append(changed)
            centres.append((top + side / 2, left + side / 2))
        return cls(np.stack(images), np.array(centres), side)

    def fit(self, changes: Array) -> Fit:
        """How well a grid moved where the squares are.

        Parameters
        ----------
        changes : (PROBES, h, w), how far each cell moved.
        """
        count, h, w = changes.shape
        height, width = self.images.shape[2:]
        peaks = np.maximum(changes.max(axis=(1, 2), keepdims=True), 1e-300)
        logs = np.log(np.maximum(changes / peaks, _FLOOR))
        # Some places move with every change; what counts is where this change moved more.
        relative = (logs - logs.mean(axis=0)).reshape(count, -1)
        rows, columns = np.divmod(relative.argmax(axis=1), w)
        found = np.stack([(rows + 0.5) * height / h, (columns + 0.5) * width / w], axis=1)
        cell = np.array([height / h, width / w])
        offsets = found - self.centres
        hit = (np.abs(offsets) <= self.side / 2 + 0.75 * cell).all(axis=1)
        if not hit.any() or (np.abs(offsets[hit].mean(axis=0)) > _MOST_OFFSET * cell).any():
            return Fit(0, float("inf"))
        distance = float(np.abs(offsets[hit] / cell).max(axis=1).mean())
        return Fit(int(hit.sum()), distance)


def rectangles(count: int, aspect: float) -> Iterator[tuple[int, int]]:
    """(h, w) of `count` cells, of at least 3 a side, that are squares of a picture of `aspect`."""
    for h in range(_LEAST_CELLS, count // _LEAST_CELLS + 1):
        w = count // h
        # The last row or column of patches may be cut off or padded.
        if (
            h * w == count
            and abs(h - w * aspect) < max(1.0, aspect)
            and abs(h / aspect - w) < max(1.0, 1 / aspect)
        ):
            yield h, w


def token_grids(count: int, aspect: float) -> Iterator[tuple[int, int, int]]:
    """(prefix tokens, h, w) as which `count` tokens may lie in a picture of `aspect`."""
    for prefix in range(min(_MOST_PREFIX_TOKENS, count) + 1):
        for h, w in rectangles(count - prefix, aspect):
            yield prefix, h, w
