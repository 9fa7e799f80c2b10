"""Noisy linear imputation: hidden pixels become what their neighbours suggest, and a little noise.

Each hidden pixel is the weighted mean of its eight neighbours, hidden ones included: 1/6 for the
four beside it, 1/12 for the four at its corners, rescaled at the picture's edge. That is one sparse
linear system for a picture. Noise is added to what it gives. Less than a flat colour, the shape of
the hidden part tells the model what was hidden.
Source: Rong et al., "A consistent and efficient evaluation strategy for attribution methods" (ICML
2022), called ROAD.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

FloatArray = NDArray[np.float32]
Mask = NDArray[np.bool_]

# As published, in normalised units.
NOISE_STD = 0.01
_NEIGHBOURS = (((0, 1), 1 / 6), ((1, 0), 1 / 6), ((1, 1), 1 / 12), ((1, -1), 1 / 12))
# Below so many pixels, a part of the picture is not divided any further.
_LEAF_PIXELS = 32


@dataclass(frozen=True, eq=False)
class _Grid:
    """Of one picture size: the weights between pixels, (HW,HW), and an order to eliminate them."""

    weights: sparse.csr_array
    laplacian: sparse.csr_array
    order: NDArray[np.int64]


def impute(pixels: FloatArray, hidden: Mask, *, seed: int = 0) -> FloatArray:
    """The picture with its hidden pixels imputed; the others are as they were.

    Parameters
    ----------
    pixels : (3,H,W) float32, normalised.
    hidden : (H,W), True where a pixel is not to be known.
    seed : of the noise: one field for the whole picture, whichever of its pixels are hidden.

    Returns
    -------
    (3,H,W) float32. Where all pixels are hidden, the picture's mean colour and noise.
    """
    result = np.array(pixels, dtype=np.float32)
    if not hidden.any():
        return result
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(NOISE_STD)
    if hidden.all():
        return np.asarray(pixels.mean(axis=(1, 2), keepdims=True) + noise, dtype=np.float32)
    grid = _grid(hidden.shape)
    flat = hidden.reshape(-1)
    unknown = grid.order[flat[grid.order]]
    known = np.flatnonzero(~flat)
    colours = pixels.reshape(len(pixels), -1)
    right = grid.weights[unknown][:, known] @ colours[:, known].T.astype(np.float64)
    system = grid.laplacian[unknown][:, unknown].tocsc()
    # Symmetric and positive: no pivots, and the order is chosen already.
    factors = splu(
        system,
        permc_spec="NATURAL",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    solved = factors.solve(np.asarray(right)).T.astype(np.float32)
    of_noise = noise.reshape(len(pixels), -1)
    result.reshape(len(pixels), -1)[:, unknown] = solved + of_noise[:, unknown]
    return result


@functools.lru_cache(maxsize=4)
def _grid(size: tuple[int, int]) -> _Grid:
    height, width = size
    places = np.arange(height * width).reshape(size)
    rows, columns, values = [], [], []
    for (down, right), weight in _NEIGHBOURS:
        here = places[: height - down, max(0, -right) : width - max(0, right)].reshape(-1)
        there = places[down:, max(0, right) : width - max(0, -right)].reshape(-1)
        rows += [here, there]
        columns += [there, here]
        values.append(np.full(2 * here.size, weight))
    weights = sparse.csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(places.size, places.size),
    )
    sums = np.asarray(weights.sum(axis=1)).reshape(-1)
    laplacian = sparse.csr_array(sparse.diags_array(sums) - weights)
    return _Grid(weights, laplacian, np.concatenate(_dissected(places)))


def _dissected(places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Nested dissection: two halves, then the line between them, each half likewise.

    Eliminated in this order, the factors of 50,000 pixels fill half as much as in SciPy's own.
    """
    if places.size <= _LEAF_PIXELS or min(places.shape) < 3:
        return [places.reshape(-1)]
    if places.shape[0] < places.shape[1]:
        places = places.T
    middle = places.shape[0] // 2
    halves = (*_dissected(places[:middle]), *_dissected(places[middle + 1 :]))
    return [*halves, places[middle]]
