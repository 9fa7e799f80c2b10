"""The normals the CPU has made, kept within a bound.

They depend on the seed, the mask index and the image's size alone, so every picture of a run after
the first finds them ready. A GPU makes them in the kernel instead.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.philox import standard_normals

# 192 masks of 3 x 224 x 224 float32: enough for every clustered run, and for DeiT-Tiny unclustered.
DEFAULT_LIMIT_BYTES = 128 * 1024 * 1024


class NoiseCache:
    """Read-only `standard_normals` by (seed, mask index, shape), least recently used dropped first.

    Safe to use from several threads: two that miss the same entry both make it, and get equal
    values.

    Parameters
    ----------
    limit_bytes : the most memory the kept normals may take. 0 keeps none.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._entries: OrderedDict[tuple[int, int, tuple[int, int, int]], NDArray[np.float32]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        return self._held

    def normals(
        self, seed: int, mask_index: int, shape: tuple[int, int, int]
    ) -> NDArray[np.float32]:
        """(C,H,W) float32, read-only; see `vitcx.kernels.host.philox.standard_normals`."""
        key = (seed, mask_index, shape)
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                return found
        made = np.ascontiguousarray(standard_normals(seed, mask_index, shape))
        made.flags.writeable = False
        with self._lock:
            if key not in self._entries and made.nbytes <= self._limit:
                self._entries[key] = made
                self._held += made.nbytes
                while self._held > self._limit:
                    self._held -= self._entries.popitem(last=False)[1].nbytes
        return made
