"""Runs a checkout of the authors' code as it is, on a machine that it was not written for.

Nothing of it is changed. What surrounds it is: where there is no GPU, moving to one does nothing;
an argument that scikit-learn has renamed since keeps its old name; what it prints is dropped. The
place is given as FILE.py:FUNCTION; the function is called with the model, a (1,3,H,W) tensor, the
layer, the class and the threshold, and gives the map.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.models import site_of
from vitcx.export.timm_import import import_timm
from vitcx.runtime.errors import InputError

FloatArray = NDArray[np.float32]


def load_authors(place: str) -> Callable[..., Any]:
    """The function at ``FILE.py:FUNCTION``."""
    file, colon, name = place.rpartition(":")
    path = Path(file)
    if not colon or path.suffix != ".py" or not path.is_file():
        raise InputError(
            f"--authors-code '{place}': give FILE.py:FUNCTION, a file of a checkout of the "
            "authors' repository and its function"
        )
    import_timm()  # torchvision may need timm's remedy
    import sklearn.cluster

    newer = sklearn.cluster.AgglomerativeClustering

    def renamed(*arguments: Any, affinity: Any = None, **settings: Any) -> Any:
        if affinity is not None:
            settings["metric"] = affinity
        return newer(*arguments, **settings)

    sys.path.insert(0, str(path.parent.resolve()))
    try:
        with mock.patch.object(sklearn.cluster, "AgglomerativeClustering", renamed):
            module = importlib.import_module(path.stem)
    finally:
        del sys.path[0]
    function: Callable[..., Any] = getattr(module, name)
    return function


@contextlib.contextmanager
def _surroundings(noise: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if not torch.cuda.is_available():
            for owner in (torch.Tensor, nn.Module):
                stack.enter_context(mock.patch.object(owner, "cuda", lambda self, *a, **k: self))
        if not noise:
            stack.enter_context(mock.patch.object(torch, "randn", torch.zeros))
        yield


def run_authors(
    function: Callable[..., Any],
    model: nn.Module,
    image: FloatArray,
    target: int,
    *,
    threshold: float = 0.1,
    noise: bool = True,
) -> FloatArray:
    """The map of the authors' code; ``noise=False`` feeds it zeros for its normals."""
    layer = model.get_submodule(site_of(model).path)
    with _surroundings(noise):
        result = function(model, torch.from_numpy(image)[None], layer, target, threshold)
    # Where a channel is constant it divides 0 by 0; such pixels rank last.
    return np.nan_to_num(np.asarray(result, dtype=np.float32), nan=0.0)
