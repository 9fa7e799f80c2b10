"""Opens what a user names or hands in as a model, and says where everything about it came from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitcx.export.preprocessing import (
    input_channels,
    preprocessing_of_nobody,
    preprocessing_of_spec,
    preprocessing_of_timm,
)
from vitcx.export.sources import torchvision_models, zero_shot
from vitcx.export.sources.class_names import label_set_names
from vitcx.export.sources.huggingface import (
    PREFIX,
    huggingface_source,
    is_folder_of_huggingface,
)
from vitcx.export.sources.source import Source
from vitcx.export.sources.timm_models import resize, timm_model
from vitcx.export.spec import ModelSpec
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


def open_source(
    model: str | nn.Module,
    *,
    spec: ModelSpec | None,
    checkpoint: Path | None,
    num_classes: int | None,
    weights: str | None,
    labels: Sequence[str] | None,
    size: tuple[int, int] | None,
    where: tuple[int | None, int],
    headless: bool,
    say: Callable[[str], None],
) -> Source:
    """The model that a user named, or handed in.

    Parameters
    ----------
    model, spec, checkpoint, num_classes, weights : as of `vitcx.export.export_model`.
    labels : classes in words, of a model with a text tower.
    size : (H, W) in pixels that is asked for.
    where : stage and block that are asked for.
    headless : features are wanted, not classes.
    say : told each step.

    Raises
    ------
    InputError
        For a model, weights or arguments that do not go together.
    """
    if labels is not None and not (isinstance(model, str) and model.startswith(zero_shot.PREFIX)):
        raise InputError("labels go with a model that has a text tower: clip:NAME or clip:FOLDER")
    if isinstance(model, str):
        if spec is not None:
            raise InputError("a spec goes with a module: leave it out for a model by name")
        by_words = model.startswith(zero_shot.PREFIX)
        if by_words or model.startswith(PREFIX) or is_folder_of_huggingface(model):
            if (checkpoint, num_classes, weights) != (None, None, None):
                raise InputError(
                    "checkpoint, num_classes and weights go with a model of timm or torchvision: a "
                    "Hugging Face model brings its own"
                )
            say(f"opening {model} with transformers")
            if by_words:
                return zero_shot.zero_shot_source(model, labels, size)
            return huggingface_source(model, size, headless=headless)
        if model.startswith(torchvision_models.PREFIX):
            say(f"making {model}" + ("" if checkpoint else ", with torchvision's weights"))
            return torchvision_models.torchvision_source(
                model, checkpoint, num_classes, size, headless=headless, weights=weights
            )
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
    origin = f"module: {type(module).__module__}.{type(module).__qualname__}"
    config: dict[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    name = (spec and spec.name) or config.get("architecture") or type(module).__name__
    if spec is None and config:
        if size is not None:
            resize(module, size)
        return _of_timm(module, name, origin)
    if spec is None:
        preprocessing = preprocessing_of_nobody(module, size)
        return Source(module, name, origin, preprocessing, input_channels(module))
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
