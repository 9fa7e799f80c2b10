"""Reads a checkpoint without running code from it, and loads it into a model key by key."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vitcx.kernels.errors import first_line
from vitcx.runtime.errors import InputError

# Where training scripts put the state dict in what they save, and what wrappers put before a key.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.")
_RESAMPLED = ("pos_embed", "relative_position_bias_table", "patch_embed.proj")
_SHOWN = 3


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors by key from a ``.safetensors`` file, or torch's ``.pth``, ``.pt`` or ``.bin``.

    Raises
    ------
    InputError
        If there is no such file, its format is another, or it holds more than tensors.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at '{path}'")
    if path.suffix == ".safetensors":
        try:
            return _unprefixed(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InputError(f"'{path}' is not a safetensors file: {error}") from None
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise InputError(
            f"'{path.name}' has the suffix '{path.suffix}', "
            "expected .safetensors, .pth, .pt or .bin"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail anywhere in the unpickler
        raise InputError(
            f"cannot read '{path}' as plain tensors, and no other content is run or read "
            f"({first_line(error)}): save it with torch.save(model.state_dict(), FILE) or as "
            "safetensors"
        ) from None
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = (
        {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise InputError(
            f"'{path}' holds a {type(content).__name__} without tensors, expected a state dict, "
            "alone or under 'model' or 'state_dict'"
        )
    return _unprefixed(tensors)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load `state` if it has the model's keys and shapes, as they are or as timm converts them.

    Raises
    ------
    InputError
        If keys are missing or left over, or shapes differ; the model is unchanged. The message
        names the first of them.
    """
    problems = mismatches(model, state)
    if problems and (converted := _converted(model, state)) is not None:
        state, problems = converted, []
    if problems:
        raise InputError(f"'{origin}' does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(dict(state), strict=True)


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from loading into `model`, a sentence for each kind; empty if it fits."""
    own = model.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems = []
    if missing:
        problems.append(f"missing {_some(missing)}")
    if unexpected:
        problems.append(f"unexpected {_some(unexpected)}")
    if shapes:
        problems.append(_some(shapes))
    if missing or unexpected:
        problems.append("is MODEL the name of the architecture that it was trained as?")
    elif shapes:
        problems.append("check MODEL, --num-classes and --img-size")
    return problems


def head_classes(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Number of classes of the head in `state`, by the name timm gives it; None if not found."""
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    name = configured[0] if isinstance(configured, tuple | list) else configured
    weight = state.get(f"{name}.weight", state.get("head.weight"))
    return int(weight.shape[0]) if weight is not None and weight.ndim >= 2 else None


def _converted(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """`state` in timm's keys where it has those of the model's authors, or None.

    timm keeps the conversion beside the model's class, and uses it for the weights that it
    downloads. It also resamples patches and positions to the model's size; that is refused here,
    because the size is the user's choice and the loss would go unseen.
    """
    own = model.state_dict()
    if any(
        key in state and state[key].shape != own[key].shape
        for key in own
        if any(part in key for part in _RESAMPLED)
    ):
        return None
    convert: Callable[..., Any] | None = getattr(
        sys.modules[type(model).__module__], "checkpoint_filter_fn", None
    )
    if convert is None:
        return None
    try:
        converted = dict(convert(dict(state), model))
    except (KeyError, IndexError, AttributeError, RuntimeError, ValueError, AssertionError):
        return None  # not a checkpoint of this family: the caller says what does not fit
    return converted if not mismatches(model, converted) else None


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefixes that DataParallel and torch.compile put before every key."""
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
