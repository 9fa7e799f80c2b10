"""How a timm model wants its pictures, in the manifest's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from vitcx.export.sources.spec import ModelSpec
from vitcx.export.sources.timm_import import import_timm
from vitcx.runtime.bundle import INTERPOLATIONS
from vitcx.runtime.errors import InputError

# timm's "border" pads the long side to a square: the whole picture is kept, so the nearest of ours
# is "squash", which keeps it too and distorts instead of padding.
_CROP_MODES = {"center": "center", "squash": "squash", "border": "squash"}


@dataclass(frozen=True)
class Preprocessing:
    """The manifest's entries of the same names; `input_size` is (H, W) in pixels."""

    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float
    crop_mode: str
    interpolation: str


def preprocessing_of_timm(model: nn.Module) -> Preprocessing:
    """From the pretrained configuration of `model`, and the size it takes now.

    Raises
    ------
    InputError
        If the model does not take three channels, or its resize filter or crop is unknown.
    """
    config: dict[str, Any] = import_timm().data.resolve_model_data_config(model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = size if size is not None else config["input_size"][-2:]
    if len(config["mean"]) != 3 or len(config["std"]) != 3:
        raise InputError(
            f"the model takes {len(config['mean'])} channels, expected 3 (red, green, blue)"
        )
    if config["interpolation"] not in INTERPOLATIONS:
        raise InputError(
            f"the model's resize filter is {config['interpolation']!r}, "
            f"expected one of {', '.join(INTERPOLATIONS)}"
        )
    if config["crop_mode"] not in _CROP_MODES:
        raise InputError(
            f"the model's crop is {config['crop_mode']!r}, expected one of {', '.join(_CROP_MODES)}"
        )
    mean, std = config["mean"], config["std"]
    return Preprocessing(
        input_size=(int(height), int(width)),
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        crop_fraction=float(config["crop_pct"]),
        crop_mode=_CROP_MODES[config["crop_mode"]],
        interpolation=config["interpolation"],
    )


def preprocessing_of_spec(spec: ModelSpec) -> Preprocessing:
    """What `spec` says."""
    return Preprocessing(
        input_size=spec.input_size,
        mean=spec.mean,
        std=spec.std,
        crop_fraction=spec.crop_fraction,
        crop_mode=spec.crop_mode,
        interpolation=spec.interpolation,
    )
