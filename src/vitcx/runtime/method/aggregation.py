"""Impacts and masks to a saliency map (eq. 5), at patch resolution until the last step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.upsampling import upsample

# Below this a coverage is the float32 rounding of zero: eq. 5 defines the map as 0 there.
COVERAGE_FLOOR = 1e-6

FloatArray = NDArray[np.float32]


def coverage_of(masks: FloatArray, size: tuple[int, int]) -> FloatArray:
    """ρ of section 3.4, the mean of the masks (at least one): (H,W) float32 in [0, 1]."""
    return np.clip(upsample(masks.mean(axis=0, dtype=np.float32), size), 0, 1)


def aggregate(
    masks: FloatArray, impacts: FloatArray, size: tuple[int, int], *, correct_coverage: bool
) -> tuple[FloatArray, FloatArray]:
    """``S(x) / K`` of eq. 5: the mean impact of the masks that cover a pixel, weighted by cover.

    Parameters
    ----------
    masks : (K,h,w) float32, K >= 0.
    impacts : (T,K) float32.
    size : (H, W) in pixels.
    correct_coverage : divide by ρ; without it the result is ``Σ s_k M_k / K`` (eq. 1).

    Returns
    -------
    saliency (T,H,W) float32, zero where ρ is zero; coverage ρ (H,W) float32 in [0, 1].
    """
    count, height, width = masks.shape
    if count == 0:
        zeros = np.zeros((len(impacts), *size), dtype=np.float32)
        return zeros, np.zeros(size, dtype=np.float32)
    weighted = (impacts @ masks.reshape(count, -1) / np.float32(count)).reshape(-1, height, width)
    saliency = upsample(np.asarray(weighted, dtype=np.float32), size)
    coverage = coverage_of(masks, size)
    if correct_coverage:
        covered = coverage > COVERAGE_FLOOR
        divisor = np.where(covered, coverage, 1)
        saliency = np.where(covered, saliency / divisor, 0)
    return np.ascontiguousarray(saliency, dtype=np.float32), coverage
