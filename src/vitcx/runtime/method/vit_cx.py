"""ViT-CX: the ViT masks, clustered (sections 3.1 and 3.2 of the paper)."""

from __future__ import annotations

from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.method.clustering import cluster
from vitcx.runtime.method.estimators.registry import choose_estimator
from vitcx.runtime.method.masks import cosine_distances, merge_masks, vit_masks
from vitcx.runtime.method.method import FloatArray, Method, Size
from vitcx.runtime.settings import Settings


def _masks(embedding: FloatArray, settings: Settings, size: Size) -> FloatArray:
    masks = vit_masks(embedding, size)
    if settings.cluster_masks == "none" or len(masks) == 0:
        return masks
    assert settings.distance_threshold is not None  # `complete_settings` took the bundle's
    labels = cluster(cosine_distances(masks, size), settings.distance_threshold)
    return merge_masks(masks, labels, size, settings.cluster_masks)


def _order(settings: Settings) -> MaskOrder:
    if settings.cluster_masks == "none":
        return MaskOrder()
    return MaskOrder(settings.distance_threshold, settings.cluster_masks == "renormalised")


VIT_CX = Method(
    name="vit-cx",
    summary="masks of the model's own patch embeddings, clustered",
    source="Xie, Li, Cao, Zhang: ViT-CX (IJCAI 2023)",
    masks=_masks,
    estimator=choose_estimator,
    order=_order,
    uses=frozenset({"estimator", "distance_threshold", "cluster_masks", "seed"}),
)
