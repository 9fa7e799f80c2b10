"""RISE: random masks, summed by the score of what they show."""

from __future__ import annotations

from vitcx.runtime.method.estimators.plain import PLAIN
from vitcx.runtime.method.method import FloatArray, Method, Size
from vitcx.runtime.method.random_masks import random_mask_shape, random_masks
from vitcx.runtime.settings import Settings

DEFAULT_COUNT = 4000


def _masks(embedding: FloatArray, settings: Settings, size: Size) -> FloatArray:
    return random_masks(settings.mask_count or DEFAULT_COUNT, settings.seed)


RISE = Method(
    name="rise",
    summary="random masks, without noise",
    source="Petsiuk, Das, Saenko: RISE (BMVC 2018)",
    masks=_masks,
    estimator=lambda settings: PLAIN,
    uses=frozenset({"mask_count", "seed", "coverage_correction"}),
    mask_shape=lambda settings, size: random_mask_shape(settings.mask_count or DEFAULT_COUNT),
)
