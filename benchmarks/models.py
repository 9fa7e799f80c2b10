"""One set of weights, as torch runs it and as an engine does.

`open_model` takes a bundle and, for what needs torch, the checkpoint that it was made of. The
embedded model needs none: its weights are read back from its graph.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vitcx.runtime import demo
from vitcx.runtime.bundle import read_bundle
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import Explainer, load

DEMO = "demo"
# What the exporter puts before the names of the module's parameters.
_PREFIX = "model."
# A reduced precision differs from torch by less on most pictures, other weights by more on all.
_SAME_WEIGHTS = 0.05
_SITES: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Model:
    """A model that methods explain.

    Parameters
    ----------
    explainer : the model on an engine.
    make : gives it as a torch module; called when a method first asks for it.
    embedded : whether it is the embedded model.

    Attributes
    ----------
    module : the torch module, in evaluation mode.
    """

    def __init__(
        self, explainer: Explainer, make: Callable[[], Any], *, embedded: bool = False
    ) -> None:
        self.explainer = explainer
        self.embedded = embedded
        self._make = make

    @cached_property
    def module(self) -> Any:
        module = self._make().eval()
        _check_weights(self.explainer, module)
        return module


@contextlib.contextmanager
def open_model(
    bundle: str, checkpoint: Path | None = None, engine: str = "auto", **options: Any
) -> Iterator[Model]:
    """The model of a bundle; the engine is closed at the end.

    Parameters
    ----------
    bundle : folder, or ``demo``.
    checkpoint : weights that the bundle was made of; None takes those of timm's hub.
    engine, options : as for `vitcx.load`.
    """
    with load(bundle, engine, **options) as explainer:
        yield Model(explainer, lambda: torch_module(bundle, checkpoint), embedded=bundle == DEMO)


def torch_module(bundle: str, checkpoint: Path | None = None) -> Any:
    """What a bundle was made of, in torch; parameters as for `open_model`."""
    if bundle == DEMO:
        folder = Path(demo.__file__).parent / "bundle"
        return embedded_module(read_bundle(folder).model_path)
    from vitcx.export.sources.timm_models import timm_model

    manifest = read_bundle(bundle).manifest
    return timm_model(manifest.model_name, checkpoint, img_size=manifest.input_size)[0].eval()


def _check_weights(explainer: Explainer, module: Any) -> None:
    import torch

    size = explainer.manifest.input_size
    picture = np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32)
    with torch.no_grad():
        found = module(torch.from_numpy(picture)).softmax(dim=1).numpy()
    differs = float(np.abs(found - explainer.session.predict(picture)).max())
    if differs > _SAME_WEIGHTS:
        raise InputError(
            f"the probabilities of '{explainer.manifest.model_name}' in torch and in the bundle "
            f"differ by {differs:.2f}: give the --checkpoint that the bundle was made of"
        )


def site_of(module: Any) -> Any:
    """Where the module's embedding is (`vitcx.export.graph.embedding.Site`), found once.

    Finding it runs the model. It is done on a copy in float32, so that neither an element type nor
    who counts the module's passes is in the way.
    """
    if module not in _SITES:
        from vitcx.export.graph.embedding import find_site

        plain = copy.deepcopy(module).float()
        for part in plain.modules():
            part._forward_hooks.clear()
        _SITES[module] = find_site(plain)
    return _SITES[module]


def embedded_module(graph: Path) -> Any:
    """The torch module of ``model.onnx`` of the bundle 'demo', in evaluation mode.

    Biases and norms keep their names in the graph; the matrix of a linear layer is nameless and
    transposed, and is the other operand of the product that its bias is added to.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    from tools.demo_model import model as demo_model

    proto = onnx.load(graph).graph
    stored = {i.name: numpy_helper.to_array(i) for i in proto.initializer}
    weights = {n.removeprefix(_PREFIX): v for n, v in stored.items() if n.startswith(_PREFIX)}
    products = {
        node.output[0]: stored[node.input[1]]
        for node in proto.node
        if node.op_type == "MatMul" and node.input[1] in stored
    }
    for node in proto.node:
        if node.op_type == "Add":
            named = [n for n in node.input if n.startswith(_PREFIX) and n.endswith(".bias")]
            matrix = [products[n] for n in node.input if n in products]
            if named and matrix:
                name = named[0].removeprefix(_PREFIX).removesuffix("bias") + "weight"
                weights[name] = matrix[0].T
    module = demo_model.build()
    module.load_state_dict(
        {name: torch.from_numpy(np.array(w, order="C")) for name, w in weights.items()}
    )
    return module.eval()
