"""The masks of pictures made and clustered on the GPU, from embeddings that are there already.

Only the clusters' masks leave the device. Never ran on hardware so far: see docs/gpu-notes.md.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.errors import DeviceError
from vitcx.kernels.gpu import mask_kernels
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.cublas import Cublas
from vitcx.kernels.gpu.device import Gpu, PinnedBuffer
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.gpu.streams import Stream
from vitcx.kernels.host.upsampling import gram_operator
from vitcx.kernels.mask_order import MaskOrder

FloatArray = NDArray[np.float32]

_NEVER = -1.0  # a threshold below every distance: nothing is merged


class MaskSpace(Closing):
    """Makes and clusters the masks of up to N pictures; all memory is taken at construction.

    A context manager; for one thread at a time.

    Parameters
    ----------
    stream : on which the embeddings are written.
    embedding : (N,D,h,w) float32 on the device, the caller's: it outlives this.
    size : (H, W) of the model's input.

    Raises
    ------
    DeviceError
        cuBLAS is missing, a kernel does not compile, or there are too many channels.
    """

    def __init__(
        self,
        gpu: Gpu,
        launcher: KernelLauncher,
        stream: Stream,
        embedding: DeviceArray,
        size: tuple[int, int],
    ) -> None:
        pictures, count, *grid = embedding.shape
        if count > mask_kernels.MOST_CLUSTERED:
            raise DeviceError(
                f"The model has {count} channels, and a GPU clusters "
                f"{mask_kernels.MOST_CLUSTERED} at the most"
            )
        for unit, kernel in (
            ("masks", "vitcx_normalise"),
            ("masks", "vitcx_gram_apply"),
            ("masks", "vitcx_cosine_distance"),
            ("linkage", "vitcx_complete_linkage"),
            ("masks", "vitcx_cluster_masks"),
        ):
            launcher.prepare(unit, kernel)
        self._launcher = launcher
        self._stream = stream
        self._size = size
        self._embedding = embedding
        self._orders: list[MaskOrder | None] = []
        with contextlib.ExitStack() as owned:
            own = owned.enter_context
            self._cublas = own(Cublas())

            def allocate(*shape: int, dtype: Any = np.float32) -> DeviceArray:
                return own(gpu.allocate(shape, dtype, stream))

            self._grams = [
                own(gpu.upload(gram_operator(pixels, cells).astype(np.float32), stream))
                for pixels, cells in zip(size, grid, strict=True)
            ]
            self._masks = allocate(*embedding.shape)
            self._weighted = allocate(*embedding.shape)  # and then the clusters' masks
            self._products = allocate(pictures, count, count)
            self._kept = allocate(pictures, count, dtype=np.int32)
            self._room = allocate(pictures, 6, count, dtype=np.int32)
            self._clusters = mask_kernels.Clusters(
                members=allocate(pictures, count, dtype=np.int32),
                offsets=allocate(pictures, count + 1, dtype=np.int32),
                counts=allocate(pictures, dtype=np.int32),
            )
            self._thresholds = allocate(pictures)
            self._modes = allocate(pictures, dtype=np.int32)
            self._pinned_orders = own(PinnedBuffer(2 * 4 * pictures))
            self._pinned = own(PinnedBuffer(max(4 * pictures, 4 * count * math.prod(grid))))
            self._owned = owned.pop_all()

    def queue(self, orders: Sequence[MaskOrder | None]) -> None:
        """Queue the masks of the first pictures: an order for each, None where none are wanted.

        The embedding is read on the stream; what was queued before has been collected.
        """
        self._orders = list(orders)
        pictures = len(orders)
        thresholds, modes = np.empty(pictures, np.float32), np.empty(pictures, np.int32)
        for i, order in enumerate(orders):
            threshold = None if order is None else order.distance_threshold
            thresholds[i] = _NEVER if threshold is None else threshold
            stretched = order is not None and order.renormalised
            modes[i] = mask_kernels.RENORMALISED if stretched else mask_kernels.MEAN
        for start, values, array in (
            (0, thresholds, self._thresholds),
            (4 * pictures, modes, self._modes),
        ):
            self._pinned_orders.write(values, start)
            self._pinned_orders.copy_to(_first(array, pictures), self._stream, start)
        launcher, stream = self._launcher, self._stream
        masks, weighted, kept, products = (
            _first(array, pictures)
            for array in (self._masks, self._weighted, self._kept, self._products)
        )
        embedding = _first(self._embedding, pictures)
        mask_kernels.normalise(launcher, embedding, masks, kept, self._size, stream)
        rows, columns = self._grams
        mask_kernels.gram_apply(launcher, masks, rows, columns, weighted, stream)
        for picture in range(pictures):
            self._cublas.inner_products(
                _one(masks, picture), _one(weighted, picture), _one(products, picture), stream
            )
        mask_kernels.cosine_distance(launcher, products, stream)
        mask_kernels.complete_linkage(
            launcher, products, kept, self._thresholds, self._room, self._clusters, stream
        )
        mask_kernels.cluster_masks(
            launcher, masks, self._clusters, self._modes, weighted, self._size, stream
        )

    def collect(self) -> list[FloatArray | None]:
        """The masks that were queued, each (K,h,w); blocks until they are there.

        None where none were ordered, and for a picture whose embedding, or whose distances, are not
        all numbers. K is 0 where every channel is constant.
        """
        counts = self._download(_first(self._clusters.counts, len(self._orders)))
        return [
            None
            if order is None or count < 0
            else self._download(_first(_one(self._weighted, picture), count))
            for picture, (order, count) in enumerate(zip(self._orders, counts, strict=True))
        ]

    def close(self) -> None:
        """Free the memory once the stream has passed what is queued."""
        if not self._stream.closed:
            self._stream.synchronise()
        self._owned.close()

    def _download(self, array: DeviceArray) -> NDArray[Any]:
        self._pinned.copy_from(array, self._stream)
        self._stream.synchronise()
        return self._pinned.read(array.shape, array.dtype)


def _first(array: DeviceArray, count: int) -> DeviceArray:
    """The first entries along the first axis."""
    return array.part(0, (int(count), *array.shape[1:]), array.dtype)


def _one(array: DeviceArray, index: int) -> DeviceArray:
    """One entry of the first axis."""
    shape = array.shape[1:]
    return array.part(index * math.prod(shape) * array.dtype.itemsize, shape, array.dtype)
