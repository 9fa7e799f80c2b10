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
    side = max(1, int((MULTIPLICATIONS / max(1, a.shape[1])) ** 0.5))
    out = np.empty((a.shape[0], b.shape[1]), dtype=np.float32)
    for top in range(0, a.shape[0], side):
        for left in range(0, b.shape[1], side):
            tile = (slice(top, top + side), slice(left, left + side))
            np.matmul(a[tile[0]], b[:, tile[1]], out=out[tile])
    return out
