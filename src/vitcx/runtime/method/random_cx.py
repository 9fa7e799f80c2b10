"""Variant 2 of the paper: ViT-CX with random masks in place of the model's."""

from __future__ import annotations

from vitcx.runtime.method.estimators.registry import choose_estimator
from vitcx.runtime.method.method import Method
from vitcx.runtime.method.random_masks import settled_masks, settled_shape

DEFAULT_COUNT = 5000


RANDOM_CX = Method(
    name="random-cx",
    summary="ViT-CX with random masks (the paper's variant 2)",
    source="Xie, Li, Cao, Zhang: ViT-CX (IJCAI 2023), section 4.4",
    masks=lambda embedding, settings, size: settled_masks(DEFAULT_COUNT, settings),
    estimator=choose_estimator,
    uses=frozenset({"estimator", "mask_count", "seed"}),
    mask_shape=lambda settings, size: settled_shape(DEFAULT_COUNT, settings),
)
