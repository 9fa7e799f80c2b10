"""Imports timm where torchvision and torch are builds for different devices.

timm imports torchvision, whose wheel on the package index is a CUDA build. Beside a CPU build of
torch its compiled extension does not load, and then torchvision's own Python code fails on the two
operators that the extension would have defined. timm uses neither, so declaring them is enough.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# torch drops an operator's declaration with the object that made it.
_keep_alive: list[Any] = []


@functools.cache
def import_timm() -> ModuleType:
    """The module timm, with torchvision's missing operators declared only if that stopped it."""
    try:
        return importlib.import_module("timm")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    import torch

    # What was half imported would be found, and used, by the second attempt.
    for name in [n for n in sys.modules if n.partition(".")[0] in ("torchvision", "timm")]:
        del sys.modules[name]
    make: Any = torch.library.Library  # untyped in torch
    library = make("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(operator)
    _keep_alive.append(library)
    return importlib.import_module("timm")
