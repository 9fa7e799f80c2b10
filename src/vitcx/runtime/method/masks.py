"""From patch embeddings to masks, at patch resolution (algorithm steps 1 to 3).

A mask is kept as its (h, w) array ``m``; the pixel mask is ``M = U m`` (see `kernels.upsampling`).
Min-max normalisation is affine and the rows of ``U`` sum to 1, so nothing of size H x W is needed
to make, compare or average masks. Because pixel centres do not fall on patch centres, ``m`` may
leave [0, 1] a little where ``M`` does not.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.product import product, symmetric_product
from vitcx.kernels.host.upsampling import axis_operator, gram_operator

# A channel whose range is within the rounding of float32 (8 eps of its magnitude) is constant: it
# says nothing about where, and its min-max normalisation would only magnify rounding.
CONSTANT_CHANNEL_RTOL = 1e-6

FloatArray = NDArray[np.float32]


@functools.lru_cache(maxsize=64)
def _corner_operator(size: int, cells: int) -> FloatArray:
    """Rows of `axis_operator` at the first and last sample of every cell.

    Between two neighbouring patch centres the surface is linear along an axis, so on each cell of
    samples a bilinear surface takes its extremes at these samples.
    """
    position = np.maximum((np.arange(size) + 0.5) * (cells / size) - 0.5, 0.0)
    cell = np.floor(position).astype(np.int64)
    change = np.flatnonzero(np.diff(cell))
    chosen = np.union1d([0, size - 1], np.concatenate([change, change + 1]))
    result: FloatArray = np.take(axis_operator(size, cells), chosen, axis=0)
    result.flags.writeable = False
    return result


@functools.lru_cache(maxsize=64)
def _gram_root(size: int, cells: int) -> FloatArray:
    """The symmetric ``S`` with ``S S = UᵀU`` of one axis, (cells, cells) float32."""
    values, vectors = np.linalg.eigh(gram_operator(size, cells))
    # None is negative but by rounding: where there are fewer pixels than cells, some are 0.
    roots = np.sqrt(np.clip(values, 0, None))
    result: FloatArray = ((vectors * roots) @ vectors.T).astype(np.float32)
    result.flags.writeable = False
    return result


def extremes(low: FloatArray, size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Least and greatest value of each upsampled map, exactly, without upsampling.

    Parameters
    ----------
    low : (D,h,w) float32.
    size : (H, W) in pixels.

    Returns
    -------
    two (D,) float32 arrays, min and max of ``U low[j]`` over the H x W pixels.
    """
    rows = _corner_operator(size[0], low.shape[1])
    columns = _corner_operator(size[1], low.shape[2])
    samples = rows @ low @ columns.T
    return samples.min(axis=(1, 2)), samples.max(axis=(1, 2))


def _varies(least: FloatArray, greatest: FloatArray) -> NDArray[np.bool_]:
    magnitude = np.maximum(np.abs(least), np.abs(greatest))
    return np.asarray(greatest - least > CONSTANT_CHANNEL_RTOL * magnitude)


def vit_masks(embedding: FloatArray, size: tuple[int, int]) -> FloatArray:
    """The ViT masks ``M_1..M_D``, each the min-max normalised map of one embedding channel.

    Constant channels are left out: they have no min-max normalisation, and a mask that is the same
    everywhere can say nothing of where the evidence lies.

    Parameters
    ----------
    embedding : (D,h,w) float32, finite.
    size : (H, W) of the model's input.

    Returns
    -------
    (D',h,w) float32 with D' <= D, in channel order; ``U m`` spans exactly [0, 1].
    """
    least, greatest = extremes(embedding, size)
    kept = _varies(least, greatest)
    least, greatest = least[kept, None, None], greatest[kept, None, None]
    return np.asarray((embedding[kept] - least) / (greatest - least), dtype=np.float32)


def cosine_distances(masks: FloatArray, size: tuple[int, int]) -> FloatArray:
    """``1 - cos(M_i, M_j)`` over pixels, from ``<M_i, M_j> = m_iᵀ (UᵀU) m_j``.

    With ``S S = UᵀU`` that is ``<S m_i, S m_j>``: a product of vectors of length 1 with themselves.

    Parameters
    ----------
    masks : (D,h,w) float32, none of them zero everywhere.
    size : (H, W) in pixels.

    Returns
    -------
    (D,D) float32, symmetric, in [0, 1] for masks in [0, 1], zero on the diagonal.
    """
    rows = _gram_root(size[0], masks.shape[1])
    columns = _gram_root(size[1], masks.shape[2])
    vectors = np.asarray(rows @ masks @ columns, dtype=np.float32).reshape(len(masks), -1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = symmetric_product(vectors)
    np.subtract(1, distance, out=distance)
    np.clip(distance, 0, None, out=distance)
    np.fill_diagonal(distance, 0)
    return distance


def merge_masks(
    masks: FloatArray, labels: NDArray[np.int64], size: tuple[int, int], how: str
) -> FloatArray:
    """One mask for each cluster.

    Parameters
    ----------
    masks : (D,h,w) float32.
    labels : (D,) the cluster of each mask, 0 to K-1, every cluster with a member.
    size : (H, W) in pixels.
    how : ``mean`` (the paper's text) or ``renormalised`` (its code: the sum, min-max normalised
        again). A cluster whose members add up to a constant keeps its mean.

    Returns
    -------
    (K,h,w) float32.
    """
    count = int(labels.max()) + 1
    membership = np.zeros((count, len(masks)), dtype=np.float32)
    membership[labels, np.arange(len(masks))] = 1
    membership /= membership.sum(axis=1, keepdims=True)
    mean = product(membership, masks.reshape(len(masks), -1)).reshape(count, *masks.shape[1:])
    if how == "mean":
        return mean
    least, greatest = extremes(mean, size)
    varies = _varies(least, greatest)
    shift = np.where(varies, least, 0)[:, None, None]
    span = np.where(varies, greatest - least, 1)[:, None, None]
    return np.asarray((mean - shift) / span, dtype=np.float32)
