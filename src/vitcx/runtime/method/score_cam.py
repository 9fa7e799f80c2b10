"""Score-CAM, as the ViT-CX paper adapts it: every ViT mask, no clustering, no correction."""

from __future__ import annotations

from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.method.estimators.plain import PLAIN
from vitcx.runtime.method.masks import vit_masks
from vitcx.runtime.method.method import FloatArray, Method, Size
from vitcx.runtime.settings import Settings


def _masks(embedding: FloatArray, settings: Settings, size: Size) -> FloatArray:
    return vit_masks(embedding, size)


SCORE_CAM = Method(
    name="score-cam",
    summary="every mask of the embedding, summed by f(y|X⊙M) (eq. 1)",
    source="Wang et al.: Score-CAM (CVPRW 2020)",
    masks=_masks,
    estimator=lambda settings: PLAIN,
    order=lambda settings: MaskOrder(),
    uses=frozenset({"seed"}),
    corrects_coverage=lambda settings: False,
)
