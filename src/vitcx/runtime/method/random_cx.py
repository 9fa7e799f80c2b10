"""Variant 2 of the paper: ViT-CX with random masks in place of the model's."""

from __future__ import annotations

from vitcx.runtime.method.estimators.registry import choose_estimator
from vitcx.runtime.method.method import FloatArray, Method, Size
from vitcx.runtime.method.random_masks import random_mask_shape, random_masks
from vitcx.runtime.settings import Settings

DEFAULT_COUNT = 5000


def _masks(embedding: FloatArray, settings: Settings, size: Size) -> FloatArray:
    return random_masks(settings.mask_count or DEFAULT_COUNT, settings.seed)


RANDOM_CX = Method(
    name="random-cx",
    summary="ViT-CX with random masks (the paper's variant 2)",
    source="Xie, Li, Cao, Zhang: ViT-CX (IJCAI 2023), section 4.4",
    masks=_masks,
    estimator=choose_estimator,
    uses=frozenset({"estimator", "mask_count", "seed"}),
    mask_shape=lambda settings, size: random_mask_shape(settings.mask_count or DEFAULT_COUNT),
)
