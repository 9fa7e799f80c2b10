"""The kernels on a GPU: the same operations as the NumPy modules, on device memory.

Every method queues its work on the stream it is given and returns at once. Arguments are hardly
checked: this is below the public boundary. Never ran on hardware so far, see docs/gpu-notes.md; the
device logic itself is tested on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.errors import DeviceArrayError
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.compiler import cubin
from vitcx.kernels.gpu.cuda_modules import cuda_module
from vitcx.kernels.gpu.device import Gpu
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

_BLOCK = 256
_MOST_IN_GRID = 65535  # the most blocks a grid can have in y
_RUN = 4  # float32 elements of one 16-byte store
_CLUSTER_MODES = {"mean": 0, "renormalised": 1}


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
    blocks = -(-runs // _BLOCK)
    fills = blocks * perturbations >= resident_blocks
    return blocks, perturbations, 1 if fills else min(channels, 64)


@dataclass(frozen=True)
class _Geometry:
    """Grid and image size as the kernels' int arguments."""

    grid: tuple[int, int]
    size: tuple[int, int]

    def arguments(self) -> tuple[np.int32, ...]:
        return tuple(np.int32(n) for n in (*self.grid, *self.size))


class GpuKernels:
    """The kernels compiled for, and loaded on, one GPU.

    Parameters
    ----------
    gpu : the device.
    cache : directory of the compiled kernels; default `compiler.cache_directory`.
    """

    def __init__(self, gpu: Gpu, cache: Path | None = None) -> None:
        self._gpu = gpu
        self._cache = cache
        self._modules: dict[str, Any] = {}
        self._kernels: dict[str, Any] = {}
        self._resident: dict[str, int] = {}

    def prepare_blend(self) -> None:
        """Compile and load what `blend` needs; `DeviceError` where that cannot be done."""
        self._kernel("blend", "vitcx_blend")

    def blend(
        self,
        images: DeviceArray,
        masks: DeviceArray,
        perturbations: DeviceArray,
        out: DeviceArray,
        stream: Stream,
    ) -> None:
        """`vitcx.kernels.host.blend.blend` on the device; rows not named are left as they are.

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
        kernel = self._kernel("blend", "vitcx_blend")
        resident = self._resident_blocks("vitcx_blend", kernel)
        for first in range(0, perturbations.shape[0], _MOST_IN_GRID):
            count = min(_MOST_IN_GRID, perturbations.shape[0] - first)
            self._launch(
                kernel,
                blend_grid((height, width), channels, count, resident),
                _BLOCK,
                stream,
                images.pointer,
                masks.pointer,
                perturbations.pointer + first * PERTURBATION_DTYPE.itemsize,
                out.pointer,
                np.int32(count),
                *(np.int32(n) for n in (channels, height, width, *masks.shape[1:])),
            )
        out.stream = stream

    def normalise(
        self,
        embedding: DeviceArray,
        masks: DeviceArray,
        kept: DeviceArray,
        size: tuple[int, int],
        stream: Stream,
    ) -> None:
        """Embedding (D,h,w) to min-max normalised masks (D,h,w); a constant channel becomes zeros.

        Parameters
        ----------
        kept : (D,) int32, set to 1, or 0 for constant channels (`vit_masks` leaves those out).
        size : (H, W) of the pixels over which the extremes are taken.
        """
        count, *grid = embedding.shape
        self._launch(
            self._kernel("masks", "vitcx_normalise"),
            (count, 1, 1),
            32,
            stream,
            embedding.pointer,
            masks.pointer,
            kept.pointer,
            *_Geometry((grid[0], grid[1]), size).arguments(),
        )
        masks.stream = kept.stream = stream

    def gram_apply(
        self,
        masks: DeviceArray,
        gram_rows: DeviceArray,
        gram_columns: DeviceArray,
        out: DeviceArray,
        stream: Stream,
    ) -> None:
        """``G_y m G_x`` of each mask: (D,h,w), with (h,h) and (w,w) float32 Gram operators."""
        count, height, width = masks.shape
        self._launch(
            self._kernel("masks", "vitcx_gram_apply"),
            (-(-count * height * width // _BLOCK), 1, 1),
            _BLOCK,
            stream,
            masks.pointer,
            gram_rows.pointer,
            gram_columns.pointer,
            out.pointer,
            *(np.int32(n) for n in (count, height, width)),
        )
        out.stream = stream

    def cosine_distance(
        self, products: DeviceArray, condensed: DeviceArray, stream: Stream
    ) -> None:
        """(D,D) inner products to the D(D-1)/2 distances that SciPy's `linkage` reads."""
        count = products.shape[0]
        if count < 2:
            return
        self._launch(
            self._kernel("masks", "vitcx_cosine_distance"),
            (-(-count // _BLOCK), count - 1, 1),
            _BLOCK,
            stream,
            products.pointer,
            condensed.pointer,
            np.int32(count),
        )
        condensed.stream = stream

    def cluster_masks(
        self,
        masks: DeviceArray,
        members: DeviceArray,
        offsets: DeviceArray,
        out: DeviceArray,
        size: tuple[int, int],
        how: str,
        stream: Stream,
    ) -> None:
        """`vitcx.runtime.method.masks.merge_masks` on the device.

        Parameters
        ----------
        members : (D,) int32, indices into `masks`, cluster by cluster.
        offsets : (K+1,) int32, where each cluster begins in `members`.
        out : (K,h,w) float32, written.
        how : ``mean`` or ``renormalised``.
        """
        count, height, width = out.shape
        self._launch(
            self._kernel("masks", "vitcx_cluster_masks"),
            (count, 1, 1),
            32,
            stream,
            masks.pointer,
            members.pointer,
            offsets.pointer,
            out.pointer,
            *_Geometry((height, width), size).arguments(),
            np.int32(_CLUSTER_MODES[how]),
        )
        out.stream = stream

    def aggregate(
        self,
        masks: DeviceArray,
        impacts: DeviceArray,
        low: DeviceArray,
        saliency: DeviceArray,
        coverage: DeviceArray,
        stream: Stream,
        *,
        correct_coverage: bool = True,
    ) -> None:
        """`vitcx.runtime.method.aggregation.aggregate` on the device, for one mask or more.

        Parameters
        ----------
        masks : (K,h,w) float32, K >= 1.
        impacts : (T,K) float32.
        low : (T+1,h,w) float32, room for the maps before they are upsampled.
        saliency : (T,H,W) float32, written.
        coverage : (H,W) float32, written.
        """
        count, height, width = masks.shape
        targets, *size = saliency.shape
        cells = height * width
        self._launch(
            self._kernel("aggregate", "vitcx_weighted_masks"),
            (-(-cells // 128), targets + 1, 1),
            128,
            stream,
            impacts.pointer,
            masks.pointer,
            low.pointer,
            *(np.int32(n) for n in (targets, count, cells)),
        )
        self._launch(
            self._kernel("aggregate", "vitcx_saliency"),
            (-(-size[0] * size[1] // _BLOCK), 1, 1),
            _BLOCK,
            stream,
            low.pointer,
            saliency.pointer,
            coverage.pointer,
            np.int32(targets),
            *_Geometry((height, width), (size[0], size[1])).arguments(),
            np.int32(correct_coverage),
        )
        low.stream = saliency.stream = coverage.stream = stream

    def _kernel(self, unit: str, name: str) -> Any:
        if name not in self._kernels:
            if unit not in self._modules:
                code = cubin(unit, self._gpu.arch, self._cache)
                self._modules[unit] = cuda_module().ObjectCode.from_cubin(code, name=unit)
            self._kernels[name] = self._modules[unit].get_kernel(name)
        return self._kernels[name]

    def _resident_blocks(self, name: str, kernel: Any) -> int:
        if name not in self._resident:
            per_processor = kernel.occupancy.max_active_blocks_per_multiprocessor(_BLOCK, 0)
            self._resident[name] = int(per_processor) * self._gpu.processors
        return self._resident[name]

    @staticmethod
    def _launch(
        kernel: Any, grid: tuple[int, int, int], block: int, stream: Stream, *arguments: Any
    ) -> None:
        """Queue a kernel. cuda.core passes a Python int as 8 bytes, a NumPy scalar as its own."""
        core = cuda_module()
        core.launch(stream.native, core.LaunchConfig(grid=grid, block=block), kernel, *arguments)
