"""Who is timed: ours on an engine, the paper's procedure in PyTorch, the authors' code.

A contender is described by a few words and built from them, so that another process can build it
too. Each module is imported when a contender needs it: ours then shows what it takes without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer, load

FloatArray = NDArray[np.float32]
# (map, facts): ours tells of its stages, the others of nothing.
Answer = tuple[FloatArray, dict[str, Any]]
Call = Callable[[FloatArray, int], Answer]

AUTHORS = "the authors' code"
TORCH = {
    "loop": "PyTorch, a mask at a time",
    "batched": "PyTorch, batched",
    "compiled": "PyTorch, batched, compiled",
    "bf16": "PyTorch, batched, bf16",
}


@dataclass(frozen=True)
class Contender:
    """`kind` is ``vitcx``, ``authors`` or a key of `TORCH`; the rest is for ``vitcx``."""

    kind: str
    bundle: str = ""
    engine: str = "auto"
    estimator: str = "paper"


def parse_bundle(text: str) -> tuple[str, str]:
    """``DIR`` or ``DIR@ENGINE`` to folder and engine."""
    bundle, _, engine = text.partition("@")
    if not bundle:
        raise InputError(f"--bundle '{text}': give DIR, or DIR@ENGINE")
    return bundle, engine or "auto"


@dataclass
class Workshop:
    """Builds contenders of one model, each part of them once. `with` frees the engines."""

    model: str
    checkpoint: str | None = None
    authors_code: str | None = None
    threads: int | None = None
    _explainers: dict[tuple[str, str], Explainer] = field(default_factory=dict, init=False)
    _stack: ExitStack = field(default_factory=ExitStack, init=False)

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def explainer(self, bundle: str, engine: str) -> Explainer:
        key = (bundle, engine)
        if key not in self._explainers:
            self._explainers[key] = self._stack.enter_context(load(bundle, engine, self.threads))
        return self._explainers[key]

    @cached_property
    def module(self) -> Any:
        """The model in torch, without gradients."""
        module = self._trained()
        module.requires_grad_(False)
        return module

    def label(self, contender: Contender) -> str:
        if contender.kind != "vitcx":
            return AUTHORS if contender.kind == "authors" else TORCH[contender.kind]
        explainer = self.explainer(contender.bundle, contender.engine)
        precision = explainer.manifest.precision
        return f"vitcx {precision} {explainer.session.engine} {contender.estimator}"

    def build(self, contender: Contender) -> Call:
        """What explains a normalised (3,H,W) picture for a class."""
        if contender.kind == "vitcx":
            return self._ours(contender)
        if contender.kind == "authors":
            return self._authors()
        return self._torch(contender.kind)

    def authors_map(self, image: FloatArray, target: int) -> FloatArray:
        """The map of the authors' code with zeros for its normals."""
        from benchmarks.authors import run_authors

        return run_authors(self._function, self._with_gradients, image, target, noise=False)

    def _ours(self, contender: Contender) -> Call:
        explainer = self.explainer(contender.bundle, contender.engine)

        def call(image: FloatArray, target: int) -> Answer:
            found = explainer.explain(image, target, estimator=contender.estimator)
            passes = found.settings["forward_passes"]
            return found.saliency[0], {**found.timings, "passes": passes}

        return call

    def _torch(self, kind: str) -> Call:
        import torch

        from benchmarks import plain

        module = self.module
        if kind == "loop":
            return lambda image, target: (plain.loop(module, image, target), {})
        forward = torch.compile(module, dynamic=True) if kind == "compiled" else None

        def call(image: FloatArray, target: int) -> Answer:
            return plain.batched(module, image, target, forward=forward, half=kind == "bf16"), {}

        return call

    def _authors(self) -> Call:
        from benchmarks.authors import run_authors

        function, module = self._function, self._with_gradients
        return lambda image, target: (run_authors(function, module, image, target), {})

    @cached_property
    def _function(self) -> Any:
        from benchmarks.authors import load_authors

        if self.authors_code is None:
            raise InputError("the authors' code is not here: give --authors-code FILE.py:FUNCTION")
        return load_authors(self.authors_code)

    @cached_property
    def _with_gradients(self) -> Any:
        """The authors' code asks for gradients, which it does not use."""
        return self._trained()

    def _trained(self) -> Any:
        import torch

        from vitcx.export.sources.timm_models import timm_model

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return timm_model(self.model, Path(self.checkpoint) if self.checkpoint else None)[0].eval()
