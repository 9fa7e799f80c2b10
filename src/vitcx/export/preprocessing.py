"""How a timm model wants its pictures, in the manifest's terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vitcx.export.spec import ModelSpec
from vitcx.export.timm_import import import_timm
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import INTERPOLATIONS, Manifest
from vitcx.runtime.pictures.preprocess import prepare

if TYPE_CHECKING:  # an ONNX file is imported without torch
    from torch import Tensor, nn

# timm's "border" pads the long side to a square: the whole picture is kept, so the nearest of ours
# is "squash", which keeps it too and distorts instead of padding.
_CROP_MODES = {"center": "center", "squash": "squash", "border": "squash"}


@dataclass(frozen=True)
class Preprocessing:
    """The manifest's entries of the same names; `input_size` is (H, W) in pixels."""

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float
    crop_mode: str
    interpolation: str

    @property
    def input_channels(self) -> int:
        """How many a picture has; one for each of `mean`."""
        return len(self.mean)


def preprocessing_of_timm(model: nn.Module) -> Preprocessing:
    """From the pretrained configuration of `model`, and the size it takes now.

    Raises
    ------
    InputError
        If its resize filter or crop is unknown.
    """
    config: dict[str, Any] = import_timm().data.resolve_model_data_config(model)
    height, width = input_size_of(model)
    if config["interpolation"] not in INTERPOLATIONS:
        raise InputError(
            f"the model's resize filter is {config['interpolation']!r}, "
            f"expected one of {', '.join(INTERPOLATIONS)}"
        )
    if config["crop_mode"] not in _CROP_MODES:
        raise InputError(
            f"the model's crop is {config['crop_mode']!r}, expected one of {', '.join(_CROP_MODES)}"
        )
    return Preprocessing(
        input_size=(height, width),
        mean=tuple(float(value) for value in config["mean"]),
        std=tuple(float(value) for value in config["std"]),
        crop_fraction=float(config["crop_pct"]),
        crop_mode=_CROP_MODES[config["crop_mode"]],
        interpolation=config["interpolation"],
    )


def preprocessing_of_nobody(module: nn.Module, size: tuple[int, int] | None) -> Preprocessing:
    """For a module that says nothing of its pictures: no mean and std, which `override` asks for.

    Raises
    ------
    InputError
        Without a size.
    """
    if size is None:
        raise InputError(
            f"{type(module).__name__} does not say the size of its pictures: give img_size, and "
            "mean and std"
        )
    return Preprocessing(size, (), (), 1.0, "center", "bicubic")


def crop_share(crop: int, resized: int) -> float:
    """The share that a crop keeps of a side that was resized to `resized` pixels.

    The runtime gets that side back as the whole part of ``crop / share``.
    """
    share = crop / resized
    return share if math.floor(crop / share) == resized else math.nextafter(share, 0)


def input_size_of(model: nn.Module) -> tuple[int, int]:
    """(H, W) that a timm model takes now."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is None:
        size = import_timm().data.resolve_model_data_config(model)["input_size"][-2:]
    return int(size[0]), int(size[1])


def input_channels(module: nn.Module) -> int:
    """Channels of the pictures: those of the first convolution, or 3 where there is none."""
    config: dict[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    from torch import nn

    named = config.get("first_conv")
    for name in [named] if isinstance(named, str) else []:
        try:
            first = module.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(first, nn.Conv2d):
            return first.in_channels
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels
    return 3


def override(
    known: Preprocessing,
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    interpolation: str | None,
    crop: float | str | None,
) -> Preprocessing:
    """`known` with what the user says instead.

    Raises
    ------
    InputError
        If a value is out of its range, or no mean and std are known for the model's channels.
    """
    means = _each("mean", mean, known.mean, channels)
    stds = _each("std", std, known.std, channels)
    if min(stds) <= 0:
        raise InputError(f"std is {stds}, expected numbers above 0")
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise InputError(
            f"interpolation is {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}"
        )
    mode, share = known.crop_mode, known.crop_fraction
    if crop == "squash":
        mode, share = "squash", 1.0
    elif crop is not None:
        try:
            mode, share = "center", float(crop)
        except ValueError:
            share = math.nan
        if not 0 < share <= 1:
            raise InputError(f"crop is {crop!r}, expected a share in (0, 1] or squash")
    return replace(
        known,
        mean=means,
        std=stds,
        interpolation=interpolation or known.interpolation,
        crop_mode=mode,
        crop_fraction=share,
    )


def _each(
    name: str, given: Sequence[float] | None, known: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    """One finite number for each channel; one that is given stands for all."""
    values = tuple(float(value) for value in (known if given is None else given))
    if given is not None and len(values) == 1:
        values *= channels
    if len(values) != channels:
        if given is None and not known:
            raise InputError(
                "nobody knows how the pictures of this module are normalised: give mean and std, "
                "and a crop or interpolation where it was trained with others than a centre crop "
                "of the whole and bicubic"
            )
        if given is None:
            raise InputError(
                f"the model takes {channels} channel{'s' if channels > 1 else ''}, and the {name} "
                f"known for it is of {len(values)}: give --mean and --std, one number for each "
                "channel or one for all"
            )
        raise InputError(f"{name} has {len(values)} numbers, and the model takes {channels}")
    if not all(map(math.isfinite, values)):
        raise InputError(f"{name} is {values}, expected finite numbers")
    return values


def read_references(
    paths: Sequence[str | Path], preprocessing: Preprocessing
) -> list[tuple[str, Tensor]]:
    """Names and pixels (1,channels,H,W) of reference pictures, prepared as any picture."""
    import torch

    # The names of its attributes are the manifest's.
    like = cast(Manifest, preprocessing)
    return [
        (Path(path).name, torch.from_numpy(prepare(Path(path), like).pixels[None]))
        for path in paths
    ]


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
