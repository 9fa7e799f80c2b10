"""Estimators that show the picture through the soft mask: the paper's, and its relatives."""

from __future__ import annotations

import numpy as np

from vitcx.kernels.host.blend import MASKED, MASKED_MINUS, NOISY, NOISY_MINUS
from vitcx.runtime.method.estimators.estimator import Estimator, FloatArray, ScoresByKind


def _equation_2(scores: ScoresByKind, base: FloatArray) -> FloatArray:
    return scores[MASKED] + base - scores[NOISY]


def masked_score(scores: ScoresByKind, base: FloatArray) -> FloatArray:
    """``f(y|X⊙M)``, with or without noise."""
    return scores[MASKED]


def masked_loss(scores: ScoresByKind, base: FloatArray) -> FloatArray:
    """``f(y|X) - f(y|X⊙M)``: what hiding costs."""
    return base - scores[MASKED]


def _antithetic(scores: ScoresByKind, base: FloatArray) -> FloatArray:
    half = np.float32(0.5)
    masked = half * (scores[MASKED] + scores[MASKED_MINUS])
    noisy = half * (scores[NOISY] + scores[NOISY_MINUS])
    return masked + base - noisy


PAPER = Estimator("paper", "eq. 2 of the paper", (MASKED, NOISY), _equation_2)
FAST = Estimator(
    "fast", "eq. 2 without the pass that measures the noise itself", (MASKED,), masked_score
)
ANTITHETIC = Estimator(
    "antithetic",
    "eq. 2 with noise of both signs: a steadier map",
    (MASKED, NOISY, MASKED_MINUS, NOISY_MINUS),
    _antithetic,
)
