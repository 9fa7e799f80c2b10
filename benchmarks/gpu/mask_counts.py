"""How many masks an explanation has, chosen: the threshold that leaves nearest to so many.

A model's masks are as many as its clusters are, which differs from picture to picture, and means
nothing with random weights. A figure of speed is for a number of forward passes that is said.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from vitcx.runtime.method.masks import cosine_distances, vit_masks

FloatArray = NDArray[np.float32]


def threshold_for(embedding: FloatArray, size: tuple[int, int], masks: int) -> tuple[float, int]:
    """The distance threshold that leaves nearest to `masks` masks, and how many it leaves.

    Parameters
    ----------
    embedding : (D,h,w) float32.
    size : (H, W) in pixels.
    masks : wanted, at least 1.
    """
    kept = vit_masks(embedding, size)
    if len(kept) < 2:
        return 0.0, len(kept)
    distances = squareform(cosine_distances(kept, size), checks=False)
    heights = np.sort(linkage(distances, method="complete")[:, 2])
    # Between two merges, as far from both as can be: rounding then changes no count.
    edges = np.concatenate([[0.0], heights, [1.0]])
    found = [
        (abs(len(kept) - merges - masks), len(kept) - merges, (low + high) / 2)
        for merges, (low, high) in enumerate(itertools.pairwise(edges))
        if low < high <= 1.0
    ]
    _, count, threshold = min(found)
    return float(threshold), count
