"""Every method of the paper's table 1 behind one call: ``explain(model, image, target)``.

It gives a map, (H,W) float32, higher is more evidence, and facts: ``passes``, what it cost in
passes of the model, a backward one counted as one. `model` is a `Model`, `image` a normalised
(3,H,W) float32 array, `target` a class index. A method that cannot explain a model raises
`NotApplicable`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import Model
from vitcx.evaluation.variants import parse_variant
from vitcx.runtime.errors import InputError

FloatArray = NDArray[np.float32]
Answer = tuple[FloatArray, dict[str, Any]]
Explain = Callable[[Model, FloatArray, int], Answer]

AUTHORS = "authors' code"
SHAPLEY = "ViT Shapley"


class NotApplicable(ValueError):
    """The method cannot explain this model; the paper's tables have a dash there."""


@contextlib.contextmanager
def counted(module: Any) -> Iterator[dict[str, int]]:
    """While open, ``passes`` of the dictionary counts pictures through the module, and back."""
    found = {"passes": 0}

    def forward(_module: Any, _inputs: Any, output: Any) -> None:
        found["passes"] += len(output)
        if output.requires_grad:
            output.register_hook(backward)

    def backward(slope: Any) -> None:
        found["passes"] += len(slope)

    handle = module.register_forward_hook(forward)
    try:
        yield found
    finally:
        handle.remove()


def of_torch(function: Callable[[Any, FloatArray, int], FloatArray], further: int = 0) -> Explain:
    """A function of a torch module; `further` passes are of its own arithmetic."""

    def explain(model: Model, image: FloatArray, target: int) -> Answer:
        with counted(model.module) as found:
            saliency = function(model.module, image, target)
        return np.ascontiguousarray(saliency, np.float32), {"passes": found["passes"] + further}

    return explain


def of_engine(**settings: Any) -> Explain:
    """A method by masks, on the model's engine."""

    def explain(model: Model, image: FloatArray, target: int) -> Answer:
        found = model.explainer.explain(image, target, **settings)
        facts = {"passes": found.settings["forward_passes"], "masks": len(found.masks)}
        return found.saliency[0], facts

    return explain


def _lazy(module: str, name: str, further: int = 0) -> Explain:
    """A function of `benchmarks.methods`, imported with torch when it is first called."""

    def function(*arguments: Any) -> FloatArray:
        from importlib import import_module

        found: FloatArray = getattr(import_module(f"benchmarks.methods.{module}"), name)(*arguments)
        return found

    return of_torch(function, further)


# In the order of the paper's table 1.
METHODS: Mapping[str, Explain] = {
    "ViT-CX": of_engine(method="vit-cx"),
    "Rollout": _lazy("attention", "rollout"),
    # Relevance goes back through every layer once.
    "Partial LRP": _lazy("relevance", "partial_lrp", further=1),
    "CGW1": _lazy("relevance", "cgw1", further=1),
    "CGW2": _lazy("attention", "cgw2"),
    "TAM": _lazy("attention", "tam"),
    "Occlusion": of_engine(method="occlusion"),
    "RISE": of_engine(method="rise"),
    "Score-CAM": of_engine(method="score-cam"),
    "Grad-CAM": _lazy("gradients", "grad_cam"),
    "Integrated-Grad": _lazy("gradients", "integrated_gradients"),
    "Smooth-Grad": _lazy("gradients", "smooth_grad"),
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


def parse_method(text: str) -> tuple[str, str]:
    """``[LABEL=]METHOD`` to label and method; a method's own settings come after a colon."""
    label, equals, spec = text.partition("=")
    if not equals or ":" in label:
        return text, text
    if not label or not spec:
        raise InputError(f"--method '{text}': give METHOD, or LABEL=METHOD")
    return label, spec


def method(name: str) -> Explain:
    """The method called `name`: one of `METHODS`; ``RISE-N``, RISE with N masks; or an engine's
    method with settings, ``vit-cx:estimator=fast``.

    Raises
    ------
    InputError
        There is none of that name.
    """
    if name in METHODS:
        return METHODS[name]
    number = name.removeprefix("RISE-")
    if number != name and number.isdecimal():
        return of_engine(method="rise", mask_count=int(number))
    return of_engine(**parse_variant(name))


def authors_method(place: str, threshold: float) -> Explain:
    """The authors' code at ``FILE.py:FUNCTION``, seeded."""
    import torch

    from benchmarks.authors import load_authors, run_authors

    function = load_authors(place)

    def explain(module: Any, image: FloatArray, target: int) -> FloatArray:
        torch.manual_seed(0)
        return run_authors(function, module, image, target, threshold=threshold)

    return of_torch(explain)


def shapley_method(weights: Path, model: Model) -> Explain:
    """ViT Shapley, trained for the model; `weights` is its safetensors file."""
    from benchmarks.methods.shapley import load_shapley, shapley_map

    learned = load_shapley(weights, model.module)
    # Its own trunk and block, beside the model's passes on the picture and on nothing.
    return of_torch(lambda module, *asked: shapley_map(learned, module, *asked), further=1)


__all__ = [
    "AUTHORS",
    "METHODS",
    "SHAPLEY",
    "VARIANTS",
    "Answer",
    "Explain",
    "FloatArray",
    "Model",
    "NotApplicable",
    "authors_method",
    "method",
    "of_engine",
    "of_torch",
    "parse_method",
    "shapley_method",
]
