"""The masks of one geometry, kept on the GPU from the embedding to the map.

Nothing goes over the bus but the distances, the labels, the impacts and the result. No session uses
it yet. Never ran on hardware so far: see docs/gpu-notes.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.gpu import mask_kernels
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.cublas import Cublas
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.gpu.streams import Stream
from vitcx.kernels.host.upsampling import gram_operator


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
        launcher: KernelLauncher,
        stream: Stream,
        grid: tuple[int, int],
        size: tuple[int, int],
    ) -> None:
        self._gpu = gpu
        self._launcher = launcher
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
        stream, gpu, launcher = self._stream, self._gpu, self._launcher
        masks = gpu.allocate(embedding.shape, np.float32, stream)
        condensed_shape = (count * (count - 1) // 2,)
        with (
            gpu.allocate((count,), np.int32, stream) as kept,
            gpu.allocate(embedding.shape, np.float32, stream) as weighted,
            gpu.allocate((count, count), np.float32, stream) as products,
            gpu.allocate(condensed_shape, np.float32, stream) as condensed,
        ):
            mask_kernels.normalise(launcher, embedding, masks, kept, self._size, stream)
            mask_kernels.gram_apply(
                launcher, masks, self._grams[0], self._grams[1], weighted, stream
            )
            self._cublas.inner_products(masks, weighted, products, stream)
            mask_kernels.cosine_distance(launcher, products, condensed, stream)
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
            mask_kernels.cluster_masks(
                self._launcher, masks, order, begins, out, self._size, how, stream
            )
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
            mask_kernels.aggregate(
                self._launcher,
                masks,
                weights,
                low,
                saliency,
                coverage,
                stream,
                correct_coverage=correct_coverage,
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
