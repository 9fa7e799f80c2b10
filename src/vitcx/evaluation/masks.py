"""What the masks and their impacts look like: figure 4, section 3.4."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.method.masks import cosine_distances

FloatArray = NDArray[np.float32]

# A picture whose masks have a mean impact above this is overdetermined (section 3.4).
OVERDETERMINED_MEAN = 0.9


def mean_similarity(masks: FloatArray, size: tuple[int, int]) -> float:
    """``mSim``: the mean cosine between two different masks, over pixels; (D,h,w), D >= 2."""
    distance = cosine_distances(masks, size).astype(np.float64)
    count = len(masks)
    return float(1 - distance.sum() / (count * (count - 1)))


def overdetermination(impacts: Sequence[FloatArray]) -> dict[str, float]:
    """Share of pictures with a mean impact μ over 0.9, and the mean variance of theirs.

    Parameters
    ----------
    impacts : for each picture, the (K,) impacts of its masks.

    Returns
    -------
    ``share``; ``variance`` (NaN where no picture is overdetermined); ``mean`` of all μ.
    """
    means = np.array([float(i.mean()) for i in impacts])
    chosen = [
        float(i.var()) for i, mean in zip(impacts, means, strict=True) if mean > OVERDETERMINED_MEAN
    ]
    return {
        "share": float((means > OVERDETERMINED_MEAN).mean()),
        "variance": float(np.mean(chosen)) if chosen else float("nan"),
        "mean": float(means.mean()),
    }
