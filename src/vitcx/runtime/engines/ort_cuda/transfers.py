"""Arrays to and from the device through pinned memory that is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.device import PinnedBuffer
from vitcx.kernels.gpu.streams import Stream


class Transfers(Closing):
    """Copies on one stream. A context manager; for one thread.

    What is uploaded together lies side by side in the pinned memory; the next upload comes behind a
    download, which blocks.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pinned: PinnedBuffer | None = None

    def upload(self, *copies: tuple[NDArray[Any], DeviceArray]) -> None:
        """Queue copies of arrays to the start of device arrays of the same element type."""
        arrays = [np.ascontiguousarray(array, there.dtype) for array, there in copies]
        ends = np.cumsum([array.nbytes for array in arrays]).tolist()
        pinned = self._pinned_of(ends[-1])
        for array, end, (_, there) in zip(arrays, ends, copies, strict=True):
            start = end - array.nbytes
            pinned.write(array, start)
            part = there.part(0, array.shape, array.dtype)
            pinned.copy_to(part, self._stream, start)

    def download(self, array: DeviceArray, rows: int) -> NDArray[Any]:
        """The first rows of an array on the device. Blocks until they are there."""
        part = array.part(0, (rows, *array.shape[1:]), array.dtype)
        pinned = self._pinned_of(part.nbytes)
        pinned.copy_from(part, self._stream)
        self._stream.synchronise()
        return pinned.read(part.shape, part.dtype)

    def close(self) -> None:
        """Give the memory back; the stream must be at rest."""
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            pinned.close()

    def _pinned_of(self, size: int) -> PinnedBuffer:
        if self._pinned is None or len(self._pinned.bytes) < size:
            if self._pinned is not None:
                self._stream.synchronise()
                self.close()
            self._pinned = PinnedBuffer(size)
        return self._pinned
