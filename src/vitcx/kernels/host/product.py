"""A matrix product on the calling thread alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# OpenBLAS, which NumPy's wheels hold, does a product of up to 2^18 multiplications on the calling
# thread. Above, it wakes a thread for each core, and those then spin for tens of milliseconds:
# many times the work, on cores that are to score another picture's rows.
MULTIPLICATIONS = 1 << 18


def product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """``a @ b`` in tiles that are small enough for one thread.

    Parameters
    ----------
    a : (M,K) float32.
    b : (K,N) float32.

    Returns
    -------
    (M,N) float32.
    """
    side = _side(a.shape[1])
    out = np.empty((a.shape[0], b.shape[1]), dtype=np.float32)
    for top in range(0, a.shape[0], side):
        for left in range(0, b.shape[1], side):
            tile = (slice(top, top + side), slice(left, left + side))
            np.matmul(a[tile[0]], b[:, tile[1]], out=out[tile])
    return out


def symmetric_product(a: NDArray[np.float32]) -> NDArray[np.float32]:
    """``a @ a.T``, likewise; each pair of rows is multiplied once.

    Parameters
    ----------
    a : (M,K) float32.

    Returns
    -------
    (M,M) float32, symmetric to the bit.
    """
    side = _side(a.shape[1])
    out = np.empty((a.shape[0], a.shape[0]), dtype=np.float32)
    for top in range(0, a.shape[0], side):
        rows = slice(top, top + side)
        # NumPy multiplies an array by its own transpose symmetrically.
        out[rows, rows] = a[rows] @ a[rows].T
        for left in range(top + side, a.shape[0], side):
            columns = slice(left, left + side)
            tile = a[rows] @ a[columns].T
            out[rows, columns] = tile
            out[columns, rows] = tile.T
    return out


def _side(length: int) -> int:
    """Rows and columns of a tile whose inner products are of so many elements."""
    return max(1, int((MULTIPLICATIONS / max(1, length)) ** 0.5))
