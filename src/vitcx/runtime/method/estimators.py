"""Estimators of a mask's causal impact: which rows are scored, and the formula over their scores.

Each row is one of `vitcx.kernels.host.blend.ROW_KINDS`. A new estimator is another list and another
formula; nothing else knows how many rows a mask has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.blend import MASKED, MASKED_MINUS, NOISY, NOISY_MINUS
from vitcx.runtime.errors import InputError

FloatArray = NDArray[np.float32]
Scores = Mapping[int, FloatArray]


@dataclass(frozen=True)
class Estimator:
    """Attributes
    ----------
    name : as the user gives it.
    kinds : the row kinds scored for each mask.
    noisy : whether the rows carry noise.
    formula : (scores by kind, each (K,T); ``f(y|X)`` (T,)) to the impacts (K,T).
    """

    name: str
    kinds: tuple[int, ...]
    noisy: bool
    formula: Callable[[Scores, FloatArray], FloatArray]

    def passes(self, masks: int) -> int:
        """Forward passes for `masks` masks, that of the picture itself included."""
        return len(self.kinds) * masks + 1


def _equation_2(scores: Scores, base: FloatArray) -> FloatArray:
    return scores[MASKED] + base - scores[NOISY]


def _masked_score(scores: Scores, base: FloatArray) -> FloatArray:
    return scores[MASKED]


def _antithetic(scores: Scores, base: FloatArray) -> FloatArray:
    half = np.float32(0.5)
    masked = half * (scores[MASKED] + scores[MASKED_MINUS])
    noisy = half * (scores[NOISY] + scores[NOISY_MINUS])
    return masked + base - noisy


_ESTIMATORS = {
    "paper": Estimator("paper", (MASKED, NOISY), True, _equation_2),
    "fast": Estimator("fast", (MASKED,), True, _masked_score),
    "antithetic": Estimator(
        "antithetic", (MASKED, NOISY, MASKED_MINUS, NOISY_MINUS), True, _antithetic
    ),
}
ESTIMATOR_NAMES = tuple(_ESTIMATORS)


def choose_estimator(name: str, *, noise_std: float, debias: bool) -> Estimator:
    """The estimator for a name and its switches.

    With ``debias=False`` (the paper's variants 3 and 5) the impact is ``f(y|X⊙M)``, no noise at
    all, whatever the estimator. With ``noise_std=0`` every noisy row equals the picture, eq. 2
    becomes the same formula, and those rows are not scored.
    """
    if name not in _ESTIMATORS:
        raise InputError(f"estimator is {name!r}, not one of {', '.join(ESTIMATOR_NAMES)}")
    if not debias or noise_std == 0:
        return Estimator(name, (MASKED,), False, _masked_score)
    return _ESTIMATORS[name]
