"""Launches of the kernels on masks: each the twin of a NumPy function, on device memory.

Every function queues its work on the stream it is given and returns at once. Arguments are hardly
checked: this is below the public boundary. Never ran on hardware so far: see docs/gpu-notes.md.
"""

from __future__ import annotations

from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.launcher import BLOCK, KernelLauncher, int32s
from vitcx.kernels.gpu.streams import Stream

_CLUSTER_MODES = {"mean": 0, "renormalised": 1}
_WARP = 32  # of the kernels in which a warp takes a mask
_SMALL_BLOCK = 128


def normalise(
    launcher: KernelLauncher,
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
    launcher.launch(
        "masks",
        "vitcx_normalise",
        (count, 1, 1),
        stream,
        embedding.pointer,
        masks.pointer,
        kept.pointer,
        *int32s(grid[0], grid[1], *size),
        block=_WARP,
    )
    masks.stream = kept.stream = stream


def gram_apply(
    launcher: KernelLauncher,
    masks: DeviceArray,
    gram_rows: DeviceArray,
    gram_columns: DeviceArray,
    out: DeviceArray,
    stream: Stream,
) -> None:
    """``G_y m G_x`` of each mask: (D,h,w), with (h,h) and (w,w) float32 Gram operators."""
    count, height, width = masks.shape
    launcher.launch(
        "masks",
        "vitcx_gram_apply",
        (-(-count * height * width // BLOCK), 1, 1),
        stream,
        masks.pointer,
        gram_rows.pointer,
        gram_columns.pointer,
        out.pointer,
        *int32s(count, height, width),
    )
    out.stream = stream


def cosine_distance(
    launcher: KernelLauncher, products: DeviceArray, condensed: DeviceArray, stream: Stream
) -> None:
    """(D,D) inner products to the D(D-1)/2 distances that SciPy's `linkage` reads."""
    count = products.shape[0]
    if count < 2:
        return
    launcher.launch(
        "masks",
        "vitcx_cosine_distance",
        (-(-count // BLOCK), count - 1, 1),
        stream,
        products.pointer,
        condensed.pointer,
        *int32s(count),
    )
    condensed.stream = stream


def cluster_masks(
    launcher: KernelLauncher,
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
    launcher.launch(
        "masks",
        "vitcx_cluster_masks",
        (count, 1, 1),
        stream,
        masks.pointer,
        members.pointer,
        offsets.pointer,
        out.pointer,
        *int32s(height, width, *size, _CLUSTER_MODES[how]),
        block=_WARP,
    )
    out.stream = stream


def aggregate(
    launcher: KernelLauncher,
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
    launcher.launch(
        "aggregate",
        "vitcx_weighted_masks",
        (-(-cells // _SMALL_BLOCK), targets + 1, 1),
        stream,
        impacts.pointer,
        masks.pointer,
        low.pointer,
        *int32s(targets, count, cells),
        block=_SMALL_BLOCK,
    )
    launcher.launch(
        "aggregate",
        "vitcx_saliency",
        (-(-size[0] * size[1] // BLOCK), 1, 1),
        stream,
        low.pointer,
        saliency.pointer,
        coverage.pointer,
        *int32s(targets, height, width, *size, correct_coverage),
    )
    low.stream = saliency.stream = coverage.stream = stream
