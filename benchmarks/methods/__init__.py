"""Every method of the paper's table 1 behind one call: ``explain(model, image, target) -> map``.

`model` is a `Model` (the torch module and, for the methods that run on engines, the explainer of
the same weights), `image` a normalised (3,H,W) float32 array, `target` a class index; the map is
(H,W) float32, higher is more evidence. A method that cannot explain a model raises `NotApplicable`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.methods import attention, gradients, relevance
from benchmarks.methods.attention import NotApplicable
from vitcx.evaluation.variants import parse_variant
from vitcx.runtime.explainer import Explainer

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """One set of weights, as torch runs it and as an engine does."""

    module: nn.Module
    explainer: Explainer | None = None


Explain = Callable[[Model, FloatArray, int], FloatArray]


def _torch(function: Callable[[nn.Module, FloatArray, int], FloatArray]) -> Explain:
    return lambda model, image, target: function(model.module, image, target)


def _engine(**settings: Any) -> Explain:
    def explain(model: Model, image: FloatArray, target: int) -> FloatArray:
        if model.explainer is None:
            raise NotApplicable("this method runs on an engine: give the model's bundle too")
        return model.explainer.explain(image, target, **settings).saliency[0]

    return explain


# In the order of the paper's table 1.
METHODS: Mapping[str, Explain] = {
    "ViT-CX": _engine(method="vit-cx"),
    "Rollout": _torch(attention.rollout),
    "Partial LRP": _torch(relevance.partial_lrp),
    "CGW1": _torch(relevance.cgw1),
    "CGW2": _torch(attention.cgw2),
    "TAM": _torch(attention.tam),
    "Occlusion": _engine(method="occlusion"),
    "RISE": _engine(method="rise"),
    "Score-CAM": _engine(method="score-cam"),
    "Grad-CAM": _torch(gradients.grad_cam),
    "Integrated-Grad": _torch(gradients.integrated_gradients),
    "Smooth-Grad": _torch(gradients.smooth_grad),
}

# Table 2: the paper's ablation. M_cx, M_vit or M_random; eq. 2 or f(y|X⊙M); with ρ or without.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "ViT-CX": {},
    "Variant 1": {"cluster_masks": "none"},
    "Variant 2": {"method": "random-cx"},
    "Variant 3": {"debias": False},
    "Variant 4": {"coverage_correction": False},
    "Variant 5": {"debias": False, "coverage_correction": False},
}


def rise_of(mask_count: int) -> Explain:
    """RISE with another number of masks, named in the table that shows it."""
    return _engine(method="rise", mask_count=mask_count)


@functools.cache
def method(name: str) -> Explain:
    """The method called `name`; ``RISE-N`` is RISE with N masks, ``vit-cx:estimator=fast`` and the
    like an engine's method with settings.
    """
    if name.startswith("RISE-"):
        return rise_of(int(name.removeprefix("RISE-")))
    if ":" in name:
        return _engine(**parse_variant(name))
    return METHODS[name]


__all__ = ["METHODS", "VARIANTS", "Explain", "Model", "NotApplicable", "method", "rise_of"]
