"""Launches of the kernels on masks: each the twin of a NumPy function, on device memory.

Every function queues its work on the stream it is given and returns at once. Arguments are hardly
checked: this is below the public boundary. Never ran on hardware so far: see docs/gpu-notes.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.launcher import BLOCK, KernelLauncher, int32s
from vitcx.kernels.gpu.streams import Stream

MEAN, RENORMALISED = 0, 1  # what a cluster's mask is
MOST_CLUSTERED = 32768
_WARP = 32  # of the kernels in which a warp takes a mask
_LINKAGE_BLOCK = 768
_SMALL_BLOCK = 128


def normalise(
    launcher: KernelLauncher,
    embedding: DeviceArray,
    masks: DeviceArray,
    kept: DeviceArray,
    size: tuple[int, int],
    stream: Stream,
) -> None:
    """Embeddings (N,D,h,w) to min-max normalised masks (N,D,h,w).

    Parameters
    ----------
    kept : (N,D) int32, set to 1; 0 for constant channels (`vit_masks` leaves those out) and -1 for
        those with infinite values or NaN, whose masks are zeros.
    size : (H, W) of the pixels over which the extremes are taken.
    """
    pictures, count, *grid = embedding.shape
    launcher.launch(
        "masks",
        "vitcx_normalise",
        (pictures * count, 1, 1),
        stream,
        embedding.pointer,
        masks.pointer,
        kept.pointer,
        *int32s(*grid, *size),
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
    """``G_y m G_x`` of each mask: (N,D,h,w), with (h,h) and (w,w) float32 Gram operators."""
    pictures, count, height, width = masks.shape
    launcher.launch(
        "masks",
        "vitcx_gram_apply",
        (-(-pictures * count * height * width // BLOCK), 1, 1),
        stream,
        masks.pointer,
        gram_rows.pointer,
        gram_columns.pointer,
        out.pointer,
        *int32s(pictures * count, height, width),
    )
    out.stream = stream


def cosine_distance(launcher: KernelLauncher, products: DeviceArray, stream: Stream) -> None:
    """(N,D,D) inner products to distances, in place; the diagonals are left as they are."""
    pictures, count, _ = products.shape
    if count < 2:
        return
    launcher.launch(
        "masks",
        "vitcx_cosine_distance",
        (-(-count // BLOCK), count - 1, pictures),
        stream,
        products.pointer,
        *int32s(count),
    )
    products.stream = stream


@dataclass(frozen=True)
class Clusters:
    """The clusters of each picture's masks, on the device; for as many pictures and masks as fit.

    Attributes
    ----------
    members : (N,D) int32, indices of masks, cluster by cluster.
    offsets : (N,D+1) int32, where each cluster begins in `members`.
    counts : (N,) int32, how many there are; -1 where an embedding is no number.
    """

    members: DeviceArray
    offsets: DeviceArray
    counts: DeviceArray


def complete_linkage(
    launcher: KernelLauncher,
    distances: DeviceArray,
    kept: DeviceArray,
    thresholds: DeviceArray,
    room: DeviceArray,
    clusters: Clusters,
    stream: Stream,
) -> None:
    """`vitcx.runtime.method.clustering.cluster` on the device.

    Of equally near clusters the nearest is the one whose first member comes first, where SciPy
    takes another; without such ties the clusters are the same.

    Parameters
    ----------
    distances : (N,D,D) float32, used up; D is `MOST_CLUSTERED` at the most.
    kept : (N,D) int32, of `normalise`.
    thresholds : (N,) float32; below 0 nothing is merged.
    room : (N,6,D) int32.
    clusters : written.
    """
    pictures, count, _ = distances.shape
    launcher.launch(
        "linkage",
        "vitcx_complete_linkage",
        (pictures, 1, 1),
        stream,
        distances.pointer,
        kept.pointer,
        thresholds.pointer,
        room.pointer,
        clusters.members.pointer,
        clusters.offsets.pointer,
        clusters.counts.pointer,
        *int32s(count),
        block=min(_LINKAGE_BLOCK, -(-count // _WARP) * _WARP),
    )


def cluster_masks(
    launcher: KernelLauncher,
    masks: DeviceArray,
    clusters: Clusters,
    modes: DeviceArray,
    out: DeviceArray,
    size: tuple[int, int],
    stream: Stream,
) -> None:
    """`vitcx.runtime.method.masks.merge_masks` on the device, for several pictures.

    Parameters
    ----------
    masks : (N,D,h,w) float32.
    modes : (N,) int32, `MEAN` or `RENORMALISED`.
    out : (N,D,h,w) float32; as many masks of each picture are written as it has clusters.
    """
    pictures, count, *grid = out.shape
    launcher.launch(
        "masks",
        "vitcx_cluster_masks",
        (count, pictures, 1),
        stream,
        masks.pointer,
        clusters.members.pointer,
        clusters.offsets.pointer,
        clusters.counts.pointer,
        modes.pointer,
        out.pointer,
        *int32s(count, *grid, *size),
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
