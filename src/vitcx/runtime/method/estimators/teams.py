"""Estimators that show teams: the patches where a mask is high, the same number for every mask.

A soft mask dims most of a picture and hides little of it, and a mask of larger mass scores higher
for that alone. A team keeps exactly `team_share` of the patches, so that the scores of two teams
differ by what they show and not by how much. The soft masks still make the map (eq. 5), unless the
estimator fits one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.blend import DROPPED, KEPT
from vitcx.kernels.team_size import team_size
from vitcx.runtime.method.estimators.estimator import Estimator, FloatArray, ScoresByKind


def make_teams(masks: FloatArray, share: float) -> FloatArray:
    """The teams: 1 for the patches kept, 0 for the others.

    Parameters
    ----------
    masks : (K,h,w) float32, finite.
    share : of the patches that are kept, in (0, 1).

    Returns
    -------
    (K,h,w) float32, each with `team_size` ones. A mask that is the same everywhere keeps the first
    patches in reading order.
    """
    flat = masks.reshape(len(masks), math.prod(masks.shape[1:]))
    # Stable: equal patches stay in reading order.
    order = np.argsort(-flat, axis=1, kind="stable")
    size = team_size(order.shape[1], share)
    teams = np.zeros(order.shape, dtype=np.float32)
    np.put_along_axis(teams, order[:, :size], np.float32(1), axis=1)
    return teams.reshape(masks.shape)


def team_patches(teams: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The patches that each team keeps, and those it does not, both in reading order.

    Parameters
    ----------
    teams : (K,h,w) float32 of zeros and ones, as `make_teams` gives them.

    Returns
    -------
    (K,n) and (K,h·w-n) int64 indices of patches, row by row of the grid.
    """
    flat = teams.reshape(len(teams), math.prod(teams.shape[1:]))
    order = np.argsort(flat == 0, axis=1, kind="stable")
    size = int(flat[:1].sum())
    return order[:, :size], order[:, size:]


def _kept(scores: ScoresByKind, base: FloatArray) -> FloatArray:
    return scores[KEPT]


def _dropped(scores: ScoresByKind, base: FloatArray) -> FloatArray:
    return -scores[DROPPED]


def _difference(scores: ScoresByKind, base: FloatArray) -> FloatArray:
    return scores[KEPT] - scores[DROPPED]


_USES = frozenset({"noise_std", "hidden", "team_share", "coverage_correction"})

TEAMS = Estimator(
    "teams",
    "the score with a mask's team of patches alone",
    (KEPT,),
    _kept,
    teams=True,
    uses=_USES,
)
TEAMS_DROPPED = Estimator(
    "teams-dropped",
    "the loss of score without a mask's team",
    (DROPPED,),
    _dropped,
    teams=True,
    uses=_USES,
)
TEAMS_DIFFERENCE = Estimator(
    "teams-difference",
    "the score with a mask's team less the score without it",
    (KEPT, DROPPED),
    _difference,
    teams=True,
    uses=_USES,
)
