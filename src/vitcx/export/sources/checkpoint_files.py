"""Reads weights from what training programs leave, without running code from it."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitcx.kernels.errors import first_line
from vitcx.runtime.errors import InputError

# Where training programs put the weights in what they save: those that the optimiser holds, and
# averages of them (timm, Detectron, DINO's teacher).
_RAW = ("state_dict", "model", "model_state_dict", "module", "net", "network", "weights", "student")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher")
WEIGHTS = ("ema", "raw")
# What wrappers put before every key: DataParallel, torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


@dataclass(frozen=True)
class Weights:
    """Tensors by key, and which of the file's they are.

    Attributes
    ----------
    state : tensors by key.
    kind : "ema" where they are averages of those that were trained, "raw" where the file has both,
        and "" where it has one set and does not say.
    """

    state: dict[str, Tensor]
    kind: str = ""


def read_checkpoint(path: Path, weights: str | None = None) -> Weights:
    """Read safetensors, or what ``torch.save`` wrote (``.pth``, ``.ckpt``, ``.pth.tar`` and so on).

    Parameters
    ----------
    path : of the file. What it holds is seen from its content, not from its name.
    weights : "ema" or "raw", where the file holds both; None takes "ema", as timm does.

    Raises
    ------
    InputError
        If there is no such file, its format is another, it holds an object that is not plain data,
        or not the weights that are asked for.
    """
    if weights is not None and weights not in WEIGHTS:
        raise InputError(f"weights is {weights!r}, expected one of {', '.join(WEIGHTS)}")
    if not path.is_file():
        raise InputError(f"no checkpoint at '{path}'")
    if path.suffix == ".safetensors":
        try:
            return Weights(_unprefixed(load_file(path)))
        except (SafetensorError, OSError) as error:
            raise InputError(f"'{path}' is not a safetensors file: {error}") from None
    with path.open("rb") as file:
        start = file.read(4)
    if not start.startswith((_ZIP, _PICKLE)):
        raise InputError(
            f"'{path.name}' is neither safetensors (with the suffix .safetensors) nor a file of "
            "torch.save (.pth, .pt, .bin, .ckpt, .pth.tar)"
        )
    content = _load(path)
    sets = {
        "raw": _first_set(content, _RAW),
        "ema": _first_set(content, _AVERAGED),
    }
    if sets["raw"] is None and sets["ema"] is None:
        sets["raw"] = _tensors(content)
    if sets["raw"] is None and sets["ema"] is None:
        raise InputError(
            f"'{path}' holds a {type(content).__name__} without tensors, expected a state dict, "
            "alone or under a name such as 'model', 'state_dict' or 'state_dict_ema'"
        )
    kind = weights or ("ema" if sets["ema"] is not None else "raw")
    state = sets[kind]
    if state is None:
        other = "EMA" if kind == "ema" else "raw"
        raise InputError(f"'{path.name}' holds no {other} weights: leave --weights out")
    both = sets["raw"] is not None and sets["ema"] is not None
    return Weights(_unprefixed(state), kind if both or kind == "ema" else "")


def _load(path: Path) -> Any:
    """The file's content, of tensors, numbers, text and plain data alone."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_classes()):
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail anywhere in the unpickler
        raise InputError(_why_not(path, error)) from None


def _why_not(path: Path, error: Exception) -> str:
    if "TorchScript" in str(error):
        return (
            f"'{path}' is a TorchScript program, and programs are not run: save its weights with "
            "torch.save(model.state_dict(), FILE)"
        )
    strange: list[str] = []
    with contextlib.suppress(Exception):  # of a damaged file nothing is known
        strange = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    known = {f"{c.__module__}.{c.__qualname__}" for c in _plain_classes()}
    strange = [name for name in strange if name not in known]
    if strange:
        names = ", ".join(strange[:3])
        return (
            f"'{path}' holds more than weights ({names}), and reading such an object could run "
            "code. Where you trust the file, save its weights alone: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth')"
        )
    return (
        f"cannot read '{path}' as weights ({first_line(error)}): save it again with "
        "torch.save(model.state_dict(), FILE) or as safetensors"
    )


def _plain_classes() -> list[Any]:
    """Classes beside the tensors of common trainers that hold data and run nothing.

    Arguments of the command line, paths, and NumPy's numbers (a best accuracy, say).
    """
    core = sys.modules.get("numpy._core.multiarray") or sys.modules["numpy.core.multiarray"]
    numbers = [type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "u1", "?")]
    paths = [pathlib.PurePosixPath, type(pathlib.Path())]
    return [argparse.Namespace, core.scalar, np.dtype, *numbers, *paths]


def _first_set(content: Any, keys: tuple[str, ...]) -> dict[str, Tensor] | None:
    """The tensors under the first of `keys` that holds any, however deep in such dicts."""
    if not isinstance(content, Mapping):
        return None
    for key in keys:
        found = content.get(key)
        if isinstance(found, Mapping):
            inner = _first_set(found, _RAW)
            tensors = inner if inner is not None else _tensors(found)
            if tensors:
                return tensors
    return None


def _tensors(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return tensors or None


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefixes of wrappers around the whole model.

    AveragedModel counts beside its weights how many it has averaged.
    """
    counted = {key: value for key, value in state.items() if key != "n_averaged"}
    state = counted or state
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state
