"""Random masks: binary grids, upsampled bilinearly, each shifted at random (RISE)."""

from __future__ import annotations

from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.method.method import FloatArray
from vitcx.runtime.settings import Settings

# RISE's: a grid of 7 x 7 cells, each kept with probability 1/2, 4,000 masks. The ViT-CX paper's
# variant 2 takes 5,000.
RISE_CELLS = 7
RISE_KEEP = 0.5
# Shifts are multiples of a quarter of a cell: then the nodes of the shifted surface are nodes of
# one 28 x 28 grid, and a mask is exact on 28 x 28 numbers, whatever the picture's size.
RISE_SHIFTS = 4

# Those that an explanation or a picture on its way still has, and no others: thousands of masks are
# megabytes, and seeds are many.
_in_use: WeakValueDictionary[tuple[int, int], FloatArray] = WeakValueDictionary()


def random_masks(count: int, seed: int) -> FloatArray:
    """RISE's masks: random binary grids, upsampled bilinearly, each shifted at random.

    The published code shifts by whole pixels; here the shift is a multiple of a quarter of a cell,
    in each axis, and beyond the outermost nodes (1/56 of the picture) the surface is level.

    Returns
    -------
    (count,28,28) float32 in [0, 1] at mask resolution: upsampled, it is the mask. The first masks
    of a longer run with the same seed are the same. Read-only: pictures share it, for as long as
    one of them is there.
    """
    masks = _in_use.get((count, seed))
    if masks is None:
        masks = _make(count, seed)
        _in_use[count, seed] = masks
    return masks


def settled_masks(default: int, settings: Settings) -> FloatArray:
    """The random masks that settings ask for; `default` of them where they do not say how many."""
    return random_masks(settings.mask_count or default, settings.seed)


def _make(count: int, seed: int) -> FloatArray:
    nodes = RISE_CELLS * RISE_SHIFTS
    grids = np.empty((count, RISE_CELLS + 2, RISE_CELLS + 2), dtype=np.float32)
    shifts = np.empty((2, count), dtype=np.int64)
    for k in range(count):
        rng = np.random.default_rng((seed, k))
        # One more cell on each side of the picture, so that a shift never runs out of the grid.
        grids[k] = rng.random((RISE_CELLS + 2, RISE_CELLS + 2)) < RISE_KEEP
        shifts[:, k] = rng.integers(0, RISE_SHIFTS, size=2)
    # Node j of the fine grid lies at (j + 1/2) / RISE_SHIFTS cells.
    position = (np.arange(nodes) + 0.5) / RISE_SHIFTS
    shifted = np.stack([_between(position + (s + 0.5) / RISE_SHIFTS) for s in range(RISE_SHIFTS)])
    masks: FloatArray = shifted[shifts[0]] @ grids @ shifted[shifts[1]].transpose(0, 2, 1)
    masks.flags.writeable = False
    return masks


def _between(position: NDArray[np.float64]) -> FloatArray:
    """(n, cells + 2) weights of linear interpolation at positions in units of cells."""
    left = np.floor(position).astype(np.int64)
    fraction = position - left
    weights = np.zeros((len(position), RISE_CELLS + 2), dtype=np.float32)
    rows = np.arange(len(position))
    weights[rows, left] = 1 - fraction
    weights[rows, left + 1] = fraction
    return weights


def settled_shape(default: int, settings: Settings) -> tuple[int, int, int]:
    """The shape of `settled_masks`, told without making them."""
    nodes = RISE_CELLS * RISE_SHIFTS
    return settings.mask_count or default, nodes, nodes
