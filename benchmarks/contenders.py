"""Who is timed: ours on an engine, the paper's procedure in PyTorch, the authors' code.

A contender is described by a few words and built from them, so that another process can build it
too: ``python -m benchmarks.contenders`` is that process, which `peak_of` starts to learn how much
memory one takes alone. Each module is imported when a contender needs it: ours then shows what it
takes without torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.evaluation.speed import peak_memory
from vitcx.evaluation.variants import parse_variant
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
    """`kind` is ``vitcx``, ``authors`` or a key of `TORCH`; the rest is for ``vitcx``.

    Attributes
    ----------
    variant : a method with settings, as `vitcx.evaluation.variants` reads it.
    label : what the variant is called.
    """

    kind: str
    bundle: str = ""
    engine: str = "auto"
    variant: str = "vit-cx"
    label: str = "paper"


def parse_bundle(text: str) -> tuple[str, str]:
    """``DIR`` or ``DIR@ENGINE`` to folder and engine."""
    bundle, _, engine = text.partition("@")
    if not bundle:
        raise InputError(f"--bundle '{text}': give DIR, or DIR@ENGINE")
    return bundle, engine or "auto"


@dataclass
class Builder:
    """Builds contenders of one model, each part of them once. `with` frees the engines.

    Attributes
    ----------
    bundle, checkpoint : what torch's module is made of.
    """

    bundle: str
    checkpoint: str | None = None
    authors_code: str | None = None
    threads: int | None = None
    _explainers: dict[tuple[str, str], Explainer] = field(default_factory=dict, init=False)
    _stack: ExitStack = field(default_factory=ExitStack, init=False)

    def __enter__(self) -> Builder:
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
        return f"vitcx {precision} {explainer.session.engine} {contender.label}"

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
        settings = parse_variant(contender.variant)

        def call(image: FloatArray, target: int) -> Answer:
            found = explainer.explain(image, target, **settings)
            passes = found.settings["forward_passes"]
            facts = {**found.timings, "passes": passes, "masks": len(found.masks)}
            return found.saliency[0], facts

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

        from benchmarks.models import torch_module

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return torch_module(self.bundle, Path(self.checkpoint) if self.checkpoint else None)


def peak_of(builder: Builder, contender: Contender, image: FloatArray, target: int) -> int:
    """Bytes of resident memory at the peak, the interpreter and its libraries included.

    Of two explanations by the contender, alone in a process of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.npy"
        np.save(path, image)
        order = {
            "builder": {
                "bundle": builder.bundle,
                "checkpoint": builder.checkpoint,
                "authors_code": builder.authors_code,
                "threads": builder.threads,
            },
            "contender": asdict(contender),
            "image": str(path),
            "target": target,
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.contenders"],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{contender.kind} failed in its own process:\n{done.stderr}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def main() -> None:
    warnings.simplefilter("ignore")
    order: dict[str, Any] = json.load(sys.stdin)
    with Builder(**order["builder"]) as builder:
        call = builder.build(Contender(**order["contender"]))
        image = np.load(order["image"])
        for _ in range(2):
            call(image, order["target"])
        print(json.dumps({"peak_bytes": peak_memory()}))


if __name__ == "__main__":
    main()
