"""RISE: random masks, summed by the score of what they show."""

from __future__ import annotations

from vitcx.runtime.method.estimators.plain import PLAIN
from vitcx.runtime.method.method import Method
from vitcx.runtime.method.random_masks import settled_masks, settled_shape

DEFAULT_COUNT = 4000


RISE = Method(
    name="rise",
    summary="random masks, without noise",
    source="Petsiuk, Das, Saenko: RISE (BMVC 2018)",
    masks=lambda embedding, settings, size: settled_masks(DEFAULT_COUNT, settings),
    estimator=lambda settings: PLAIN,
    uses=frozenset({"mask_count", "seed", "coverage_correction"}),
    mask_shape=lambda settings, size: settled_shape(DEFAULT_COUNT, settings),
)
