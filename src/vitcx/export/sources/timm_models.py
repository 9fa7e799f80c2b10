"""Makes a timm model with its weights, at the input size that is asked for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from vitcx.export.graph.observing import check_attention
from vitcx.export.preprocessing import input_size_of
from vitcx.export.quiet import only_errors_from
from vitcx.export.sources.checkpoint_files import read_checkpoint
from vitcx.export.sources.checkpoints import (
    head_classes,
    load_strictly,
    match_keys,
    mismatches,
)
from vitcx.export.timm_import import import_timm
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.errors import InputError

# Top packages of what timm's downloads raise, besides OSError.
_NETWORK_PACKAGES = {"huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests"}


def timm_model(
    name: str,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    img_size: tuple[int, int] | None = None,
    *,
    headless: bool = False,
    weights: str | None = None,
) -> tuple[nn.Module, str]:
    """A timm model with trained weights, and where they came from in words.

    Parameters
    ----------
    name : as timm spells it, with or without a tag.
    checkpoint : file of weights; None takes those of timm's hub.
    num_classes : None takes those of the checkpoint's head or the hub's.
    img_size : (H, W) in pixels; None keeps the model's own.
    headless : take its classifier off, and give features.
    weights : "ema" or "raw", where the checkpoint holds both; None takes "ema".

    Raises
    ------
    InputError
        For an unknown name, a model without attention or classes, weights that do not fit or
        cannot be had, or a size that the model cannot take.
    """
    # Random weights first: what cannot be explained is refused before anything is downloaded.
    model = _create(name, pretrained=False)
    check_attention(model, input_size_of(model))
    if checkpoint is not None:
        model, notes = _with_weights(
            name, model, checkpoint, num_classes, img_size, headless, weights
        )
        source = f"checkpoint: {checkpoint.name} (sha256 {sha256_of(checkpoint)})"
        source = "; ".join([source, *notes])
    elif weights is not None:
        raise InputError("weights says which of a checkpoint's are meant: give --checkpoint too")
    else:
        own = getattr(model, "num_classes", None)
        if own == 0 and not headless:
            raise InputError(
                f"the hub's weights of '{name}' have no classifier, so there are no classes to "
                "explain: give weights with one (--checkpoint), or explain the features: --head "
                "none, with --reference PICTURE for a similarity"
            )
        if num_classes is not None and num_classes != own:
            raise InputError(
                f"num_classes is {num_classes}, but the hub's weights of '{name}' have {own} "
                "classes and a new head would be random: give the trained weights, --checkpoint"
            )
        model = _create(name, pretrained=True)
        config = getattr(model, "pretrained_cfg", None) or {}
        source = f"timm hub: {config.get('hf_hub_id') or config.get('url') or name}"
    if headless and getattr(model, "num_classes", None) not in (None, 0):
        cast(Any, model).reset_classifier(0)
    if img_size is not None:
        resize(model, img_size)
    return model.eval(), source


def resize(model: nn.Module, img_size: tuple[int, int]) -> None:
    """Make `model` take pictures of `img_size`, in place; a model that does already is left alone.

    Position embeddings are resampled. Swin keeps the windows that it was trained with, because its
    position biases belong to them.

    Raises
    ------
    InputError
        If `img_size` is no multiple of the patch, or the model cannot change.
    """
    embed = getattr(model, "patch_embed", None)
    if embed is not None and tuple(getattr(embed, "img_size", None) or ()) == img_size:
        return
    patch = getattr(embed, "patch_size", None)
    if patch is not None and any(s < p or s % p for s, p in zip(img_size, patch, strict=True)):
        raise InputError(
            f"img_size is {img_size[0]}x{img_size[1]}, expected multiples of the patch, "
            f"{patch[0]}x{patch[1]}"
        )
    if not hasattr(model, "set_input_size"):
        raise InputError(
            f"{type(model).__name__} cannot change its input size: leave --img-size out"
        )
    arguments: dict[str, Any] = {"img_size": img_size}
    if (windows := _windows(model)) is not None:
        arguments["window_size"] = windows
    try:
        cast(Any, model).set_input_size(**arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{type(model).__name__} cannot take {img_size[0]}x{img_size[1]} pictures: {error}"
        ) from None


def _windows(model: nn.Module) -> Any:
    """Swin's attention windows as `set_input_size` wants them, or None for a model without."""
    stages = getattr(model, "layers", None)
    if not isinstance(stages, nn.Sequential | nn.ModuleList):
        return None
    windows = []
    for stage in stages:
        sizes: list[Any] = [getattr(b, "window_size", None) for b in getattr(stage, "blocks", ())]
        if not sizes or any(size is None for size in sizes):
            return None
        windows.append(tuple(sizes[0]))
    return windows[0] if len(set(windows)) == 1 else tuple(windows)


def _with_weights(
    name: str,
    model: nn.Module,
    checkpoint: Path,
    num_classes: int | None,
    img_size: tuple[int, int] | None,
    headless: bool,
    weights: str | None,
) -> tuple[nn.Module, list[str]]:
    """The model with the weights of `checkpoint`, and what was done with them in words.

    It gets the channels, pooling and number of classes that the weights have.
    """
    read = read_checkpoint(checkpoint, weights)
    state, notes = match_keys(read.state, model.state_dict())
    said = [{"ema": "its EMA weights", "raw": "its raw weights"}[read.kind]] if read.kind else []
    if needed := _arguments_for(model, state):
        model = _create(name, pretrained=False, **needed)
    found = head_classes(model, state)
    if num_classes is not None and found is not None and num_classes != found:
        raise InputError(
            f"num_classes is {num_classes}, but the head in '{checkpoint.name}' has {found} "
            "classes: leave it out"
        )
    classes = found if num_classes is None else num_classes
    if found is None and num_classes is None and headless:
        classes = 0
    if classes is not None and classes != getattr(model, "num_classes", classes):
        cast(Any, model).reset_classifier(classes)
    if found is None and classes != 0 and _lacks_only_its_head(model, state):
        raise InputError(
            f"'{checkpoint.name}' has the weights of {type(model).__name__} without a classifier, "
            "so there are no classes to explain: give weights with one, or explain the features: "
            "--head none"
        )
    # Weights may have been trained at the model's own size or at the one that is asked for.
    if img_size is not None and mismatches(model, state):
        resize(model, img_size)
    load_strictly(model, state, checkpoint.name)
    return model, [*said, *notes]


def _arguments_for(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a model must be made with for these weights: its channels, and MAE's pooling."""
    needed: dict[str, Any] = {}
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    first = config.get("first_conv")
    key = f"{first}.weight"
    own = model.state_dict().get(key)
    if own is not None and key in state and own.ndim == state[key].ndim == 4:
        channels = int(state[key].shape[1])
        if channels != own.shape[1]:
            needed["in_chans"] = channels
    if "fc_norm.weight" in state and "norm.weight" not in state and hasattr(model, "fc_norm"):
        needed["global_pool"] = "avg"
    return needed


def _lacks_only_its_head(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    missing = [key for key in model.state_dict() if key not in state]
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or "head"
    names = (heads,) if isinstance(heads, str) else tuple(heads)
    return bool(missing) and all(key.startswith(tuple(f"{n}." for n in names)) for key in missing)


def _create(name: str, *, pretrained: bool, **arguments: Any) -> nn.Module:
    timm = import_timm()
    try:
        # The hub logs each of its retries; the error that follows says it in one line.
        with only_errors_from("huggingface_hub"):
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        if _is_network(error):
            reason = (str(error).strip().splitlines() or [""])[0]
            raise InputError(
                f"cannot get '{name}' from the hub ({type(error).__name__}: {reason}) "
                "Check the network, or fetch the weights elsewhere and give --checkpoint FILE"
            ) from None
        if isinstance(error, ValueError | RuntimeError):
            raise InputError(_unknown(timm, name, error)) from None
        raise
    return model.eval()


def _unknown(timm: Any, name: str, error: Exception) -> str:
    if str(error).startswith("No pretrained weights"):
        return f"timm has no weights for '{name}': give your own, --checkpoint FILE"
    if not str(error).startswith("Unknown model"):
        return f"timm does not make '{name}': {error}"
    close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
    return f"timm {timm.__version__} has no model '{name}': {hint}"


def _is_network(error: BaseException | None) -> bool:
    while error is not None:
        package = type(error).__module__.partition(".")[0]
        if isinstance(error, OSError) or package in _NETWORK_PACKAGES:
            return True
        error = error.__cause__ or error.__context__
    return False
