"""Whole steps of an explanation on the GPU, from what the caller has to what it wants.

`Blender` does what the NumPy twin does. `MaskSpace` keeps the masks on the device: nothing goes
over the bus but the distances, the labels, the impacts and the result. Never ran on hardware so
far: see docs/gpu-notes.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.cublas import Cublas
from vitcx.kernels.gpu.device import Gpu, PinnedBuffer
from vitcx.kernels.gpu.launches import PERTURBATION_DTYPE, GpuKernels, pack_perturbations
from vitcx.kernels.gpu.streams import Stream
from vitcx.kernels.host.blend import Perturbation
from vitcx.kernels.host.upsampling import gram_operator


class Blender(Closing):
    """Blends batches on one stream; keeps its buffers from batch to batch (see `reserve`).

    Images, masks and perturbations go up in one copy through pinned memory; an image that is on the
    device already, and is a call's only one, is read where it lies. A context manager; for one
    thread at a time.

    Raises
    ------
    DeviceError
        The kernel cannot be compiled here.
    """

    def __init__(self, gpu: Gpu, kernels: GpuKernels, stream: Stream) -> None:
        kernels.prepare_blend()
        self._gpu = gpu
        self._kernels = kernels
        self._stream = stream
        self._pinned: PinnedBuffer | None = None
        self._store: DeviceArray | None = None
        self._copied: Any = None

    def reserve(self, batch: tuple[int, ...], grid: tuple[int, int]) -> None:
        """Take all the memory that batches of up to so many rows need; `blend` takes no more then.

        Parameters
        ----------
        batch : (B, C, H, W), the shape of a full one.
        grid : (h, w) of each mask.
        """
        # At the most, each row is another image under another mask.
        rows, *image = batch
        sizes = (PERTURBATION_DTYPE.itemsize, 4 * math.prod(grid), 4 * math.prod(image))
        self._take(sum(_aligned(rows * size) for size in sizes))

    def blend(
        self,
        images: Sequence[NDArray[np.float32]] | Sequence[DeviceArray],
        masks: Sequence[NDArray[np.float32]],
        perturbations: Sequence[Perturbation],
        out: DeviceArray,
    ) -> None:
        """Queue the rows that the perturbations name; see `vitcx.kernels.host.blend.blend`.

        Parameters
        ----------
        images : each (C,H,W) float32, all on the host; or one on the device.
        masks : each (h,w) float32.
        out : (B,C,H,W) float32 on the device.
        """
        on_device = images[0] if isinstance(images[0], DeviceArray) else None
        parts: list[NDArray[Any]] = [pack_perturbations(perturbations), np.stack(list(masks))]
        if on_device is None:
            parts.append(np.stack([np.asarray(image) for image in images]))
        places = self._upload(parts)
        if on_device is not None:
            stacked = on_device.part(0, (1, *on_device.shape), np.float32)
        else:
            stacked = places[2]
        self._kernels.blend(stacked, places[1], places[0], out, self._stream)

    def _upload(self, parts: list[NDArray[Any]]) -> list[DeviceArray]:
        """The arrays' copies on the device, valid until the next call."""
        starts, size = [], 0
        for part in parts:
            starts.append(size)
            size += _aligned(part.nbytes)
        if self._copied is not None:
            self._copied.sync()  # the last batch's copy has left the pinned memory
        pinned, store = self._take(size)
        for start, part in zip(starts, parts, strict=True):
            pinned.write(part, start)
        pinned.copy_to(store.part(0, (size,), np.uint8), self._stream)
        self._copied = self._stream.record()
        return [
            store.part(start, part.shape, part.dtype)
            for start, part in zip(starts, parts, strict=True)
        ]

    def _take(self, size: int) -> tuple[PinnedBuffer, DeviceArray]:
        """`size` bytes or more, pinned and on the device."""
        if self._pinned is None or self._store is None or self._store.nbytes < size:
            self.close()
            self._pinned = PinnedBuffer(size)
            self._store = self._gpu.allocate((size,), np.uint8, self._stream)
        return self._pinned, self._store

    def close(self) -> None:
        """Give the buffers back once the stream has passed what is queued."""
        store, self._store = self._store, None
        pinned, self._pinned = self._pinned, None
        if store is not None:
            store.close(self._stream)
        if pinned is not None:
            if self._copied is not None:
                self._copied.sync()
            pinned.close()
        self._copied = None


def _aligned(size: int) -> int:
    """Room for `size` bytes that ends where 16-byte loads may begin."""
    return -(-size // 256) * 256


class MaskSpace(Closing):
    """The masks of one geometry on the device: their distances, clusters, and the final map.

    A context manager; for one thread at a time.

    Parameters
    ----------
    grid : (h, w).
    size : (H, W) of the model's input.
    """

    def __init__(
        self,
        gpu: Gpu,
        kernels: GpuKernels,
        stream: Stream,
        grid: tuple[int, int],
        size: tuple[int, int],
    ) -> None:
        self._gpu = gpu
        self._kernels = kernels
        self._stream = stream
        self._size = size
        self._cublas = Cublas()
        self._grams = [
            gpu.upload(gram_operator(pixels, cells).astype(np.float32), stream)
            for pixels, cells in zip(size, grid, strict=True)
        ]

    def distances(
        self, embedding: DeviceArray
    ) -> tuple[DeviceArray, NDArray[np.bool_], NDArray[np.float32]]:
        """Embedding to masks and their distances. The distances are all that leaves the device.

        Parameters
        ----------
        embedding : (D,h,w) float32.

        Returns
        -------
        masks (D,h,w), on the device, the caller's to close; kept (D,), False for constant channels,
        whose masks are zeros; the condensed cosine distances, D(D-1)/2 float32, where a mask of
        zeros is at distance 1 from all others.
        """
        count = embedding.shape[0]
        stream, gpu, kernels = self._stream, self._gpu, self._kernels
        masks = gpu.allocate(embedding.shape, np.float32, stream)
        condensed_shape = (count * (count - 1) // 2,)
        with (
            gpu.allocate((count,), np.int32, stream) as kept,
            gpu.allocate(embedding.shape, np.float32, stream) as weighted,
            gpu.allocate((count, count), np.float32, stream) as products,
            gpu.allocate(condensed_shape, np.float32, stream) as condensed,
        ):
            kernels.normalise(embedding, masks, kept, self._size, stream)
            kernels.gram_apply(masks, self._grams[0], self._grams[1], weighted, stream)
            self._cublas.inner_products(masks, weighted, products, stream)
            kernels.cosine_distance(products, condensed, stream)
            return (
                masks,
                gpu.download(kept, stream).astype(bool),
                gpu.download(condensed, stream),
            )

    def merge(self, masks: DeviceArray, labels: NDArray[np.int64], how: str) -> DeviceArray:
        """Cluster masks (K,h,w), on the device, the caller's to close.

        Parameters
        ----------
        masks : (D,h,w) float32.
        labels : (D,) the cluster of each mask, 0 to K-1; -1 leaves a mask out.
        how : ``mean`` or ``renormalised``.
        """
        members, offsets = cluster_members(labels)
        stream, gpu = self._stream, self._gpu
        out = gpu.allocate((len(offsets) - 1, *masks.shape[1:]), np.float32, stream)
        with gpu.upload(members, stream) as order, gpu.upload(offsets, stream) as begins:
            self._kernels.cluster_masks(masks, order, begins, out, self._size, how, stream)
        return out

    def saliency(
        self, masks: DeviceArray, impacts: NDArray[np.float32], *, correct_coverage: bool = True
    ) -> tuple[DeviceArray, DeviceArray]:
        """``S / K`` (T,H,W) and the coverage (H,W), on the device, the caller's to close."""
        stream, gpu = self._stream, self._gpu
        targets = len(impacts)
        saliency = gpu.allocate((targets, *self._size), np.float32, stream)
        coverage = gpu.allocate(self._size, np.float32, stream)
        low_shape = (targets + 1, *masks.shape[1:])
        with (
            gpu.upload(impacts, stream) as weights,
            gpu.allocate(low_shape, np.float32, stream) as low,
        ):
            self._kernels.aggregate(
                masks, weights, low, saliency, coverage, stream, correct_coverage=correct_coverage
            )
        return saliency, coverage

    def close(self) -> None:
        for gram in self._grams:
            gram.close(self._stream)
        self._cublas.close()


def cluster_members(labels: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Labels as the kernel wants them: the masks cluster by cluster, and where each begins.

    Masks labelled -1 are left out.
    """
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    count = int(labels.max(initial=-1)) + 1
    offsets = np.searchsorted(labels[order], np.arange(count + 1))
    return order.astype(np.int32), offsets.astype(np.int32)
