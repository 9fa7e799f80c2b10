"""Loads weights into a model key by key: prefixes found, other libraries' keys converted."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from vitcx.export.sources.foreign_keys import converted_keys, recognised
from vitcx.runtime.errors import InputError

_RESAMPLED = ("pos_embed", "relative_position_bias_table", "patch_embed.proj")
_SHOWN = 3


def match_keys(
    state: Mapping[str, Tensor], own: Iterable[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """`state` with the keys of a model: without the prefix that a trainer put before them.

    Lightning has ``model.`` before each, DINO ``backbone.``; a head of one's own may lie beside.
    Keys of a loss or a second network stay out.

    Parameters
    ----------
    state : tensors by key.
    own : keys of the model.

    Returns
    -------
    the tensors, and what was done in a few words each.
    """
    wanted = set(own)
    found = converted_keys(state)
    if found is not None and len(wanted & found[0].keys()) > len(wanted & state.keys()):
        return found[0], (f"keys of {found[1]} renamed",)
    prefixes: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                prefixes[".".join(parts[:i])] += 1
                break
    if not prefixes:
        return dict(state), ()
    # Of equally many the shorter one: a teacher beside a student is no better than it.
    prefix, count = min(prefixes.items(), key=lambda item: (-item[1], len(item[0])))
    if prefix == "" or 2 * count < len(wanted):
        return dict(state), ()
    start = f"{prefix}."
    matched = {k[len(start) :]: v for k, v in state.items() if k.startswith(start)}
    beside = {
        k: v for k, v in state.items() if not k.startswith(start) and k in wanted - matched.keys()
    }
    left = len(state) - len(matched) - len(beside)
    notes = [f"prefix '{start}' taken off"]
    if left:
        notes.append(f"{left} other keys left out")
    return {**matched, **beside}, tuple(notes)


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
        if (known := recognised(state)) is not None:
            problems[-1] = known
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


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
