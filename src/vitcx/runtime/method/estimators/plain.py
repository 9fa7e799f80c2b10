"""Rows without noise, for methods whose estimator is not a choice."""

from __future__ import annotations

from vitcx.kernels.host.blend import MASKED
from vitcx.runtime.method.estimators.estimator import Estimator
from vitcx.runtime.method.estimators.soft import masked_loss, masked_score

PLAIN = Estimator(
    "fast", "f(y|X⊙M) without noise", (MASKED,), masked_score, noisy=False, uses=frozenset()
)
LOSS = Estimator(
    "fast", "f(y|X) - f(y|X⊙M) without noise", (MASKED,), masked_loss, noisy=False, uses=frozenset()
)
