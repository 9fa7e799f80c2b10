"""Bilinear upsampling of patch grids, and the same as a pair of small matrices.

``U`` maps a patch grid (h, w) to pixels (H, W): bilinear, half-pixel centres, edges clamped, as
torch does with ``align_corners=False``. It is separable, ``U m = U_y m U_xᵀ``; its rows sum to 1.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray


@functools.lru_cache(maxsize=64)
def axis_samples(
    size: int, cells: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """For each sample of one axis its left cell, its right cell and the right one's weight.

    Sample ``i`` lies at ``(i + 0.5) cells / size - 0.5`` in units of cells, clamped at 0 below;
    the right neighbour is clamped to the last cell. Three (size,) arrays, read-only.
    """
    position = np.maximum((np.arange(size) + 0.5) * (cells / size) - 0.5, 0.0)
    left = np.minimum(np.floor(position).astype(np.intp), cells - 1)
    right = np.minimum(left + 1, cells - 1)
    fraction = position - left
    for array in (left, right, fraction):
        array.flags.writeable = False
    return left, right, fraction


@functools.lru_cache(maxsize=64)
def axis_operator(size: int, cells: int) -> NDArray[np.float32]:
    """The (size, cells) float32 matrix that upsamples one axis; read-only."""
    left, right, fraction = axis_samples(size, cells)
    matrix = np.zeros((size, cells))
    rows = np.arange(size)
    matrix[rows, left] += 1 - fraction
    matrix[rows, right] += fraction
    result = matrix.astype(np.float32)
    result.flags.writeable = False
    return result


def gram_operator(size: int, cells: int) -> NDArray[np.float64]:
    """``UᵀU`` (cells, cells) of one axis."""
    operator = axis_operator(size, cells).astype(np.float64)
    return operator.T @ operator


def upsample(low: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """``U m``: (..., h, w) float32 to (..., H, W) float32.

    By gathering, not by two matrix products: a BLAS spreads even products of this size over all
    cores, and waits for them, which on a busy machine costs many times the work.
    """
    wide = _upsample_axis(np.asarray(low, dtype=np.float32), size[1], -1)
    return _upsample_axis(wide, size[0], -2)


def _upsample_axis(low: NDArray[np.float32], size: int, axis: int) -> NDArray[np.float32]:
    left, right, fraction = axis_samples(size, low.shape[axis])
    weight = fraction.astype(np.float32)
    if axis == -2:
        weight = weight[:, None]
    base = np.take(low, left, axis=axis)
    step = np.take(low, right, axis=axis)
    step -= base
    step *= weight
    base += step
    return base


@functools.lru_cache(maxsize=64)
def axis_cells(size: int, cells: int) -> NDArray[np.intp]:
    """(size,) the cell that each sample of one axis lies in, read-only; exact, by whole numbers."""
    result = (2 * np.arange(size, dtype=np.intp) + 1) * cells // (2 * size)
    result.flags.writeable = False
    return result


def spread(low: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Each pixel gets the value of the cell it lies in: (..., h, w) float32 to (..., H, W)."""
    rows, columns = (axis_cells(n, c) for n, c in zip(size, low.shape[-2:], strict=True))
    return np.take(np.take(low, columns, axis=-1), rows, axis=-2)
