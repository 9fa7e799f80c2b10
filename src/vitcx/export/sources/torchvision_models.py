"""Models of torchvision by name: with the weights of a file, or with torchvision's own."""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitcx.export.graph.heads import run_to_the_end
from vitcx.export.graph.observing import check_attention
from vitcx.export.preprocessing import Preprocessing, crop_share
from vitcx.export.sources.checkpoint_files import read_checkpoint
from vitcx.export.sources.checkpoints import load_strictly, match_keys
from vitcx.export.sources.source import Source
from vitcx.export.timm_import import import_timm
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import INTERPOLATIONS

PREFIX = "torchvision:"
# A ViT's MLP in torchvision's first weights -> the name of today.
_OLD_KEYS = (("linear_1", "0"), ("linear_2", "3"))
_POSITIONS = "encoder.pos_embedding"


def torchvision_source(
    model: str,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    size: tuple[int, int] | None = None,
    *,
    headless: bool = False,
    weights: str | None = None,
) -> Source:
    """A classifier of torchvision, with its pictures' preparation and its class names.

    Parameters
    ----------
    model : ``torchvision:NAME`` or ``torchvision:NAME.TAG``, where TAG is one of torchvision's sets
        of weights, such as ``IMAGENET1K_V1``; without one its default.
    checkpoint : file of weights; None downloads torchvision's.
    num_classes : None takes those of the checkpoint's head, or of torchvision's.
    size : (H, W) in pixels; None takes that of the weights.
    headless : take its classifier off, and give features.
    weights : "ema" or "raw", where the checkpoint holds both; None takes "ema".

    Raises
    ------
    InputError
        For an unknown name, a model without attention, weights that do not fit or cannot be had,
        or a size that the model cannot take.
    """
    import_timm()  # so that torchvision's missing operators are declared before it is imported
    models: Any = importlib.import_module("torchvision.models")
    name, _, tag = model.removeprefix(PREFIX).partition(".")
    entry = _entry(models, name, tag)
    preprocessing = _preprocessing(entry)
    # Random weights first: what cannot be explained is refused before anything is downloaded.
    module = _create(models, name, entry, None)
    check_attention(module, preprocessing.input_size)
    known = tuple(str(category) for category in entry.meta["categories"])
    if checkpoint is not None:
        read = read_checkpoint(checkpoint, weights)
        state, notes = match_keys(_renamed(read.state), module.state_dict())
        kinds = {"ema": ["its EMA weights"], "raw": ["its raw weights"], "": []}
        where = checkpoint.name
        origin = f"checkpoint: {where} (sha256 {sha256_of(checkpoint)})"
        origin = "; ".join([origin, *kinds[read.kind], *notes])
    elif weights is not None:
        raise InputError("weights says which of a checkpoint's are meant: give --checkpoint too")
    elif num_classes not in (None, len(known)):
        raise InputError(
            f"num_classes is {num_classes}, but torchvision's weights of '{name}' have "
            f"{len(known)} classes and a new head would be random: give the trained weights, "
            "--checkpoint"
        )
    else:
        state, where = _renamed(_download(entry)), entry.url
        origin = f"torchvision: {where}"
    head = _head_of(module)
    count = _classes_of(state, head, where, num_classes)
    own = _own_size(module, state)
    goal = size or own or preprocessing.input_size
    module = _create(models, name, entry, goal, num_classes=count)
    if own is not None and own != goal:
        state = _resampled(module, state, goal)
    load_strictly(module, state, where)
    if headless:
        _take_off(module, head)
    elif size is not None:
        run_to_the_end(module, torch.zeros(2, 3, *goal))  # a size that it cannot take
    return Source(
        module.eval(),
        name,
        origin,
        replace(preprocessing, input_size=goal),
        3,
        known if count == len(known) and not headless else None,
    )


def _entry(models: Any, name: str, tag: str) -> Any:
    """The set of weights that is called `tag`, or the default one."""
    classifiers = models.list_models(module=models)
    if name not in classifiers:
        close = difflib.get_close_matches(name, classifiers, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see torchvision.models"
        raise InputError(f"torchvision has no classifier '{name}': {hint}")
    sets = models.get_model_weights(name)
    if not tag:
        return sets.DEFAULT
    if tag not in sets.__members__:
        raise InputError(
            f"torchvision has no weights '{tag}' of '{name}', only {', '.join(sets.__members__)}"
        )
    return sets[tag]


def _preprocessing(entry: Any) -> Preprocessing:
    made = entry.transforms()
    (crop,), (resized,) = made.crop_size, made.resize_size
    interpolation = made.interpolation.value
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"the model's resize filter is {interpolation!r}, which nobody here has")
    return Preprocessing(
        input_size=(crop, crop),
        mean=tuple(made.mean),
        std=tuple(made.std),
        crop_fraction=crop_share(crop, resized),
        crop_mode="center",
        interpolation=interpolation,
    )


def _create(
    models: Any, name: str, entry: Any, size: tuple[int, int] | None, **arguments: Any
) -> nn.Module:
    """The model with random weights; a ViT for pictures of `size`, or of the weights' size."""
    if name.startswith("vit_"):
        height, width = size or (entry.meta["min_size"])
        if height != width:
            raise InputError(
                f"img_size is {height}x{width}, and torchvision's ViT takes squares alone: give a "
                "side, or timm's name of the same model"
            )
        arguments["image_size"] = height
    try:
        module: nn.Module = models.get_model(name, weights=None, **arguments)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise InputError(f"torchvision does not make '{name}': {error}") from None
    return module.eval()


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for old, new in _OLD_KEYS:
            key = re.sub(rf"\.mlp\.{old}\.", f".mlp.{new}.", key)
        renamed[key] = value
    return renamed


def _download(entry: Any) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            entry.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"cannot get {entry.url} ({type(error).__name__}: {error}): check the network, or "
            "fetch the weights elsewhere and give --checkpoint FILE"
        ) from None
    return state


def _head_of(module: nn.Module) -> str:
    """The path of the last linear layer, which is the classifier."""
    *_, head = (name for name, part in module.named_modules() if isinstance(part, nn.Linear))
    return str(head)


def _classes_of(state: Mapping[str, Tensor], head: str, where: str, num_classes: int | None) -> int:
    weight = state.get(f"{head}.weight")
    if weight is None or weight.ndim != 2:
        raise InputError(
            f"'{where}' has no {head}.weight, the classifier of this model: give weights with one"
        )
    found = int(weight.shape[0])
    if num_classes not in (None, found):
        raise InputError(
            f"num_classes is {num_classes}, but the head in '{where}' has {found} classes: leave "
            "it out"
        )
    return found


def _own_size(module: nn.Module, state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """The size of picture that a ViT's position embeddings are for; None without such."""
    positions = state.get(_POSITIONS)
    patch = getattr(module, "patch_size", None)
    if positions is None or positions.ndim != 3 or patch is None:
        return None
    side = math.isqrt(positions.shape[1] - 1) * int(patch)
    return side, side


def _resampled(
    module: Any, state: Mapping[str, Tensor], size: tuple[int, int]
) -> dict[str, Tensor]:
    vits: Any = importlib.import_module("torchvision.models.vision_transformer")
    resampled: dict[str, Tensor] = vits.interpolate_embeddings(
        size[0], module.patch_size, dict(state)
    )
    return resampled


def _take_off(module: nn.Module, head: str) -> None:
    parent, _, last = head.rpartition(".")
    setattr(module.get_submodule(parent), last, nn.Identity())
