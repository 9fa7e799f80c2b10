"""One linear model over all teams: how much each patch adds to the score.

The scores of the teams and of their complements are taken as ``s ≈ b + A φ``, a row of A for each,
1 where a patch is shown. The prior ``φ ~ N(0, C)`` says which patches should have like effects:

``C = (1 - likeness) exp(-|p - q|² / 2) + likeness cos(u_p, u_q)``

for patches p and q, distances in patches; ``u_p`` are the masks' values in patch p, each mask less
its mean. What the model's own embedding tells apart may differ, what it takes for one thing is
credited as one. The best ``φ`` is ``C Aᵀ (A C Aᵀ + λ I)⁻¹ (s - s̄)``, A centred,
``λ = strength · trace(A C Aᵀ) / rows``.

A complement's centred row is the team's own with the other sign. So half of that system cancels:
with ``B = H - ½`` and ``G = B C Bᵀ``, ``φ = C Bᵀ (2 G + λ I)⁻¹ (kept - dropped)`` and
``λ = strength · trace(G) / K``: K equations, whatever the number of patches.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from vitcx.kernels.host.blend import DROPPED, KEPT
from vitcx.runtime.method.estimators.estimator import Estimator, FloatArray, ScoresByKind
from vitcx.runtime.method.estimators.teams import TEAMS_DIFFERENCE
from vitcx.runtime.settings import Settings


@functools.lru_cache(maxsize=16)
def _axis_prior(cells: int) -> NDArray[np.float64]:
    """``exp(-(i - j)² / 2)`` of one axis; that of the grid is the product of the two axes'."""
    place = np.arange(cells, dtype=np.float64)
    result: NDArray[np.float64] = np.exp(-((place[:, None] - place) ** 2) / 2)
    result.flags.writeable = False
    return result


def _directions(masks: FloatArray) -> NDArray[np.float64]:
    """``u_p / |u_p|`` in columns: (K,N), 0 where every mask has its mean."""
    values = masks.reshape(len(masks), math.prod(masks.shape[1:])).astype(np.float64)
    values -= values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=0)
    result: NDArray[np.float64] = values / np.where(length > 0, length, 1)
    return result


def fit_map(
    teams: FloatArray, masks: FloatArray, scores: ScoresByKind, settings: Settings
) -> FloatArray:
    """The effect of each patch on the score of each target.

    Parameters
    ----------
    teams : (K,h,w) float32 of zeros and ones, K at least 1.
    masks : (K,h,w) float32, finite: what the teams were made of.
    scores : of `KEPT` and `DROPPED`, each (K,T) float32.
    settings : `prior_strength` and `prior_likeness`.

    Returns
    -------
    (T,h,w) float32; zero everywhere if no team shows anything that its complement does not.
    """
    count, height, width = teams.shape
    likeness = settings.prior_likeness
    difference = (scores[KEPT] - scores[DROPPED]).astype(np.float64)  # (K,T)
    centred = teams.astype(np.float64) - 0.5
    # C Bᵀ, as maps (K,h,w)
    smooth = (1 - likeness) * (_axis_prior(height) @ centred @ _axis_prior(width))
    if likeness:
        alike = _directions(masks)
        products = centred.reshape(count, -1) @ alike.T
        smooth += likeness * (products @ alike).reshape(smooth.shape)
    gram = np.tensordot(centred, smooth, axes=([1, 2], [1, 2]))
    ridge = settings.prior_strength * np.trace(gram) / count
    system = 2 * gram + ridge * np.eye(count)
    weights = cho_solve(cho_factor(system), difference)  # (K,T)
    return np.tensordot(weights.T, smooth, axes=1).astype(np.float32)


TEAMS_FIT = Estimator(
    "teams-fit",
    "a linear fit over the teams and their complements, alike for patches that are alike",
    (KEPT, DROPPED),
    TEAMS_DIFFERENCE.impacts,
    teams=True,
    fit=fit_map,
    uses=frozenset({"noise_std", "hidden", "team_share", "prior_strength", "prior_likeness"}),
)
