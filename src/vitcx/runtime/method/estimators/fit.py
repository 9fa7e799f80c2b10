"""One linear model over all teams: how much each patch adds to the score.

The scores of the teams and of their complements are taken as ``s ≈ b + A φ``, a row of A for each,
1 where a patch is shown. With a smooth prior ``φ ~ N(0, C)``, ``C = exp(-|p - q|² / 2)`` between
patches p and q (distances in patches), the best ``φ`` is ``C Aᵀ (A C Aᵀ + λ I)⁻¹ (s - s̄)``, A
centred, ``λ = strength · trace(A C Aᵀ) / rows``.

A complement's centred row is the team's own with the other sign. So half of that system cancels:
with ``B = H - ½`` and ``G = B C Bᵀ``, ``φ = C Bᵀ (2 G + λ I)⁻¹ (kept - dropped)`` and
``λ = strength · trace(G) / K``: K equations, whatever the number of patches.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from vitcx.kernels.host.blend import DROPPED, KEPT
from vitcx.runtime.method.estimators.estimator import Estimator, FloatArray, ScoresByKind
from vitcx.runtime.method.estimators.teams import TEAMS_DIFFERENCE


@functools.lru_cache(maxsize=16)
def _axis_prior(cells: int) -> NDArray[np.float64]:
    """``exp(-(i - j)² / 2)`` of one axis; the prior of the grid is the product of the two axes'."""
    place = np.arange(cells, dtype=np.float64)
    result: NDArray[np.float64] = np.exp(-((place[:, None] - place) ** 2) / 2)
    result.flags.writeable = False
    return result


def fit_map(teams: FloatArray, scores: ScoresByKind, strength: float) -> FloatArray:
    """The effect of each patch on the score of each target.

    Parameters
    ----------
    teams : (K,h,w) float32 of zeros and ones, K at least 1.
    scores : of `KEPT` and `DROPPED`, each (K,T) float32.
    strength : of the prior, positive.

    Returns
    -------
    (T,h,w) float32; zero everywhere if no team shows anything that its complement does not.
    """
    count, height, width = teams.shape
    difference = (scores[KEPT] - scores[DROPPED]).astype(np.float64)  # (K,T)
    centred = teams.astype(np.float64) - 0.5
    smooth = _axis_prior(height) @ centred @ _axis_prior(width)  # C Bᵀ, as maps (K,h,w)
    gram = np.tensordot(centred, smooth, axes=([1, 2], [1, 2]))
    ridge = strength * np.trace(gram) / count
    system = 2 * gram + ridge * np.eye(count)
    weights = cho_solve(cho_factor(system), difference)  # (K,T)
    return np.tensordot(weights.T, smooth, axes=1).astype(np.float32)


TEAMS_FIT = Estimator(
    "teams-fit",
    "a smooth linear fit over the teams and their complements",
    (KEPT, DROPPED),
    TEAMS_DIFFERENCE.impacts,
    teams=True,
    fit=fit_map,
    uses=frozenset({"noise_std", "hidden", "team_share", "prior_strength"}),
)
