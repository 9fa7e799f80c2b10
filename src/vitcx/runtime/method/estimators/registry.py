"""The estimators by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vitcx.kernels.host.blend import MASKED
from vitcx.runtime.method.estimators.estimator import Estimator
from vitcx.runtime.method.estimators.fit import TEAMS_FIT
from vitcx.runtime.method.estimators.soft import ANTITHETIC, FAST, PAPER, masked_score
from vitcx.runtime.method.estimators.teams import TEAMS, TEAMS_DIFFERENCE, TEAMS_DROPPED
from vitcx.runtime.settings import Settings

ESTIMATORS: Mapping[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        PAPER,
        FAST,
        ANTITHETIC,
        TEAMS,
        TEAMS_DROPPED,
        TEAMS_DIFFERENCE,
        TEAMS_FIT,
    )
}


def choose_estimator(settings: Settings) -> Estimator:
    """The estimator that the settings name.

    Without noise (``debias=False``, the paper's variants 3 and 5, or ``noise_std=0``) a soft
    estimator's impact is ``f(y|X⊙M)``: with no noise its other rows equal the picture itself, eq. 2
    becomes that formula, and they are not scored.
    """
    chosen = ESTIMATORS[settings.estimator]
    if not chosen.teams and (not settings.debias or settings.noise_std == 0):
        return dataclasses.replace(chosen, kinds=(MASKED,), impacts=masked_score, noisy=False)
    return chosen
