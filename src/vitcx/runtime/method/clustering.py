"""Agglomerative clustering of masks: complete linkage, cut at a distance (section 3.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform


def cluster(distances: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Merge the nearest clusters until none are within `threshold` of each other.

    The distance of two clusters is that of their farthest members (complete linkage); clusters at
    exactly the threshold are merged.

    Parameters
    ----------
    distances : (D,D) symmetric, non-negative, zero diagonal; D >= 1.
    threshold : δ.

    Returns
    -------
    (D,) int64 labels 0 to K-1, numbered in the order of each cluster's first member: the index k
    that the noise depends on is then a function of the masks alone.
    """
    if len(distances) == 1:
        return np.zeros(1, dtype=np.int64)
    tree = linkage(squareform(distances, checks=False), method="complete")
    raw = fcluster(tree, t=threshold, criterion="distance")
    _, first, inverse = np.unique(raw, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse.reshape(-1)]
