"""Masked and noised batches made on the GPU: the kernel's record, its launch, and whole batches.

Does what `vitcx.kernels.host.blend` does. Never ran on hardware so far: see docs/gpu-notes.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.errors import DeviceArrayError
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.device import Gpu, PinnedBuffer
from vitcx.kernels.gpu.launcher import BLOCK, KernelLauncher, int32s
from vitcx.kernels.gpu.streams import Stream
from vitcx.kernels.host.blend import MOST_ROWS, Perturbation

# vitcx_perturbation of cuda/vitcx_kernels.h: 48 bytes, no padding.
PERTURBATION_DTYPE = np.dtype(
    [
        ("image", np.int32),
        ("mask", np.int32),
        ("noise", np.uint32),
        ("scale", np.float32),
        ("seed", np.uint64),
        ("rows", np.int32, MOST_ROWS),
        ("kinds", np.uint8, MOST_ROWS),
        ("sharp", np.uint32),
    ]
)
SKIP = -1  # a place in `rows` that is left out

_KERNEL = ("blend", "vitcx_blend")
_MOST_IN_GRID = 65535  # the most blocks a grid can have in y
_RUN = 4  # float32 elements of one 16-byte store


def pack_perturbations(perturbations: Sequence[Perturbation]) -> NDArray[np.void]:
    """(len(perturbations),) `PERTURBATION_DTYPE`: as the kernel reads them."""
    packed = np.zeros(len(perturbations), dtype=PERTURBATION_DTYPE)
    packed["rows"] = SKIP
    for record, one in zip(packed, perturbations, strict=True):
        record["image"], record["mask"], record["noise"] = one.image, one.mask, one.noise
        record["scale"], record["seed"], record["sharp"] = one.scale, one.seed, one.sharp
        for place, (kind, row) in enumerate(one.rows):
            record["kinds"][place], record["rows"][place] = kind, row
    return packed


def blend_grid(
    size: tuple[int, int], channels: int, perturbations: int, resident_blocks: int
) -> tuple[int, int, int]:
    """The blend's launch grid: runs of pixels, perturbations, channels.

    One thread takes all channels of its pixels, because the mask is then widened once for them;
    where that leaves part of the device idle, one channel.

    Parameters
    ----------
    size : (H, W).
    resident_blocks : how many blocks of this kernel the device holds at once.
    """
    runs = -(-size[1] // _RUN) * size[0]
    blocks = -(-runs // BLOCK)
    fills = blocks * perturbations >= resident_blocks
    return blocks, perturbations, 1 if fills else min(channels, 64)


def blend_rows(
    launcher: KernelLauncher,
    images: DeviceArray,
    masks: DeviceArray,
    perturbations: DeviceArray,
    out: DeviceArray,
    stream: Stream,
) -> None:
    """Queue the rows that the perturbations name; the others are left as they are.

    Arguments are hardly checked: this is below the public boundary.

    Parameters
    ----------
    images : (N,C,H,W) float32.
    masks : (K,h,w) float32.
    perturbations : (J,) `PERTURBATION_DTYPE`; indices in range, no two naming the same row.
    out : (B,C,H,W) float32, written in place.
    """
    _, channels, height, width = images.shape
    if out.shape[1:] != images.shape[1:] or out.dtype != np.float32:
        raise DeviceArrayError(
            f"Got a batch of shape {out.shape}, {out.dtype} for float32 images of shape "
            f"{images.shape}"
        )
    resident = launcher.resident_blocks(*_KERNEL)
    for first in range(0, perturbations.shape[0], _MOST_IN_GRID):
        count = min(_MOST_IN_GRID, perturbations.shape[0] - first)
        launcher.launch(
            *_KERNEL,
            blend_grid((height, width), channels, count, resident),
            stream,
            images.pointer,
            masks.pointer,
            perturbations.pointer + first * PERTURBATION_DTYPE.itemsize,
            out.pointer,
            *int32s(count, channels, height, width, *masks.shape[1:]),
        )
    out.stream = stream


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

    def __init__(self, gpu: Gpu, launcher: KernelLauncher, stream: Stream) -> None:
        launcher.prepare(*_KERNEL)
        self._gpu = gpu
        self._launcher = launcher
        self._stream = stream
        self._pinned: PinnedBuffer | None = None
        self._store: DeviceArray | None = None
        self._copied: Any = None

    def reserve(self, batch: tuple[int, ...]) -> None:
        """Take the memory that batches of up to so many rows need, so that `blend` takes no more.

        Masks may have any resolution up to the image's own: methods differ in it. `blend` takes
        more for finer ones.

        Parameters
        ----------
        batch : (B, C, H, W), the shape of a full one.
        """
        # At the most, each row is another image under another mask.
        rows, *image = batch
        sizes = (PERTURBATION_DTYPE.itemsize, 4 * math.prod(image[1:]), 4 * math.prod(image))
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
        masks : each (h,w) float32, all of one resolution.
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
        blend_rows(self._launcher, stacked, places[1], places[0], out, self._stream)

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
