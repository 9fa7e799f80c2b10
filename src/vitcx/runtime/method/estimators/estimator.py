"""What an estimator is.

An estimator names the rows that are scored for each mask (kinds of `vitcx.kernels.host.blend`) and
says what their scores are worth. Packing, blending and the engines follow from the rows: a new
estimator is a new record, and nothing else knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.settings import EstimatorName, Settings

FloatArray = NDArray[np.float32]
ScoresByKind = Mapping[int, FloatArray]
Impacts = Callable[[ScoresByKind, FloatArray], FloatArray]
Fit = Callable[[FloatArray, FloatArray, ScoresByKind, Settings], FloatArray]


@dataclass(frozen=True)
class Estimator:
    """A way to measure the impact of a mask.

    Attributes
    ----------
    name : as the user gives it.
    summary : what it does, in one line.
    kinds : the rows scored for each mask.
    impacts : (scores by kind, each (K,T); ``f(y|X)`` (T,)) to impacts (K,T).
    noisy : whether hidden pixels are noise; without it they are 0, the mean colour.
    teams : whether the rows show teams, which have as many patches each, and not the soft mask.
    fit : makes the map at patch resolution from the teams' scores, in place of the sum of eq. 5:
        (teams (K,h,w), masks (K,h,w), scores by kind, settings) to (T,h,w).
    uses : the settings that mean something to it, beside those of the method.
    """

    name: EstimatorName
    summary: str
    kinds: tuple[int, ...]
    impacts: Impacts
    noisy: bool = True
    teams: bool = False
    fit: Fit | None = None
    uses: frozenset[str] = frozenset({"debias", "noise_std", "coverage_correction"})

    def passes(self, masks: int) -> int:
        """Forward passes for `masks` masks, that of the picture itself included."""
        return len(self.kinds) * masks + 1
