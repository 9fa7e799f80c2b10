"""Opens what a user names or hands in as a model, and says where everything about it came from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitcx.export.sources.class_names import label_set_names
from vitcx.export.sources.preprocessing import (
    Preprocessing,
    input_channels,
    preprocessing_of_spec,
    preprocessing_of_timm,
)
from vitcx.export.sources.spec import ModelSpec
from vitcx.export.sources.timm_models import resize, timm_model
from vitcx.runtime.errors import InputError

# Wrappers that training leaves around a model -> where the model is in them.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "AveragedModel": "module",
    "ModelEma": "module",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
}


@dataclass(frozen=True)
class Source:
    """A model, in evaluation mode and float32 on the CPU, and what is known of it.

    Attributes
    ----------
    module : images to logits.
    name : of the model, for the manifest.
    origin : where its weights came from, in words.
    preprocessing : how it wants its pictures.
    channels : of its input.
    class_names : of its label set, if known.
    head : what its configuration says of its outputs, one of the bundle's heads; None if nothing.
    headless : it is known to have no classifier.
    nameless : how many outputs its public weights have, if there are no names for them; else 0.
    """

    module: nn.Module
    name: str
    origin: str
    preprocessing: Preprocessing
    channels: int
    class_names: tuple[str, ...] | None = None
    head: str | None = None
    headless: bool = False
    nameless: int = 0


def open_source(
    model: str | nn.Module,
    *,
    spec: ModelSpec | None,
    checkpoint: Path | None,
    num_classes: int | None,
    weights: str | None,
    size: tuple[int, int] | None,
    where: tuple[int | None, int],
    headless: bool,
    say: Callable[[str], None],
) -> Source:
    """The model that a user named, or handed in.

    Parameters
    ----------
    model, spec, checkpoint, num_classes, weights : as of `vitcx.export.export_model`.
    size : (H, W) in pixels that is asked for.
    where : stage and block that are asked for.
    headless : features are wanted, not classes.
    say : told each step.

    Raises
    ------
    InputError
        For a model, weights or arguments that do not go together.
    """
    if isinstance(model, str):
        if spec is not None:
            raise InputError("a spec goes with a module: leave it out for a model by name")
        say(f"making {model}" + ("" if checkpoint else ", with weights from the hub"))
        module, origin = timm_model(
            model, checkpoint, num_classes, size, headless=headless, weights=weights
        )
        return _of_timm(module, model, origin)
    if checkpoint is not None or num_classes is not None or weights is not None:
        raise InputError(
            "checkpoint, num_classes and weights go with a model by name: a module is exported as "
            "it is; load its weights first"
        )
    if spec is not None and size is not None:
        raise InputError("img_size and a spec: give the size in the spec, input_size=(H, W)")
    if spec is not None and where != (None, -1):
        raise InputError("stage and block choose a layer, and so does a spec: leave them out")
    module = plain_module(model)
    if size is not None:
        resize(module, size)
    origin = f"module: {type(module).__module__}.{type(module).__qualname__}"
    config: dict[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    name = (spec and spec.name) or config.get("architecture") or type(module).__name__
    if spec is None:
        return _of_timm(module, name, origin)
    return Source(
        module, name, origin, preprocessing_of_spec(spec), len(spec.mean), spec.class_names
    )


def _of_timm(module: nn.Module, name: str, origin: str) -> Source:
    count = getattr(module, "num_classes", None)
    config: dict[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    known = label_set_names(module)
    return Source(
        module,
        name,
        origin,
        preprocessing_of_timm(module),
        input_channels(module),
        known,
        headless=count == 0,
        nameless=count if count and known is None and count == config.get("num_classes") else 0,
    )


def plain_module(module: nn.Module) -> nn.Module:
    """The model within the wrappers of training, in evaluation mode; a copy only if need be."""
    while (inner := _WRAPPERS.get(type(module).__name__)) is not None:
        module = getattr(module, inner)
    tensors = [t for t in module.state_dict().values() if isinstance(t, torch.Tensor)]
    if any(t.device.type != "cpu" or _is_other_float(t) for t in tensors):
        module = copy.deepcopy(module).to("cpu", torch.float32)
    return module.eval()


def _is_other_float(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float64)
