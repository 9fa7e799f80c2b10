"""How an ONNX file wants its pictures: what the user says, and what the graph does itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitcx.export.foreign.picture_input import PictureInput, Scaling
from vitcx.export.preprocessing import Preprocessing, override
from vitcx.runtime.errors import InputError

USUAL = (
    "usual are  --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --crop 0.875 --interpolation "
    "bicubic  (ImageNet's, of DeiT, Swin and torchvision) and  --mean 0.5 --std 0.5 --crop 0.9 "
    "--interpolation bicubic  (of Google's ViT and BEiT)"
)
# A normalisation within a graph is believed if it could be one of pictures in [0, 1].
_LEAST_STD, _MOST_STD = 0.003, 1.01
_MOST_MEAN = 1.01


def resolve_preprocessing(
    source: PictureInput,
    scaling: Scaling | None,
    size: tuple[int, int],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    interpolation: str | None,
    crop: float | str | None,
) -> Preprocessing:
    """How pictures are made for the bundle, whose graph begins behind the file's own scaling.

    Parameters
    ----------
    source, scaling : the graph's input, and what it does to it; None: nothing that is known.
    size : (H, W) of the pictures.
    mean, std : of the values in [0, 1] before the file's input, as `override` takes them.
    interpolation, crop : likewise; nothing in a graph tells them.

    Raises
    ------
    InputError
        For what nobody knows, with the usual answers.
    """
    if (mean is None) != (std is None):
        raise InputError("mean and std go together: give both")
    missing = [
        name for name, value in (("--crop", crop), ("--interpolation", interpolation)) if not value
    ]
    own = None if mean is not None else _own_normalisation(source, scaling)
    if mean is None and own is None:
        missing = ["--mean", "--std", *missing]
    if missing:
        raise InputError(
            f"an ONNX file does not say how its pictures are made: give {', '.join(missing)}; "
            f"{USUAL}"
        )
    if source.takes_bytes and mean is not None:
        raise InputError(
            "the graph takes bytes from 0 to 255 and normalises them itself: leave out --mean and "
            "--std"
        )
    nothing = Preprocessing(size, (), (), 1.0, "center", "bicubic")
    if own is not None:
        return override(nothing, source.channels, *own, interpolation, crop)
    said = override(nothing, source.channels, mean, std, interpolation, crop)
    if scaling is None or scaling.does_nothing:
        return said
    # The graph makes a (p - mean) / std + b of values p in [0, 1].
    spread = np.array(said.std) / scaling.factor
    shift = np.array(said.mean) - scaling.offset * spread
    if (spread <= 0).any():
        raise InputError(
            "the graph turns bright into dark before its first layer: use the model without that"
        )
    return override(said, source.channels, _rounded(shift), _rounded(spread), None, None)


def _own_normalisation(
    source: PictureInput, scaling: Scaling | None
) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and std of values in [0, 1] that the graph subtracts and divides by; None if it does
    not, or if it cannot be told whether for values up to 1 or up to 255.
    """
    if scaling is None or scaling.does_nothing or (scaling.factor <= 0).any():
        return None
    found = []
    for largest in (255.0,) if source.takes_bytes else (1.0, 255.0):
        std = 1 / (largest * scaling.factor)
        mean = -scaling.offset * std
        if (
            (std >= _LEAST_STD).all()
            and (std <= _MOST_STD).all()
            and (mean >= 1 - _MOST_MEAN).all()
            and (mean <= _MOST_MEAN).all()
        ):
            found.append((_rounded(mean), _rounded(std)))
    return found[0] if len(found) == 1 else None


def _rounded(values: NDArray[np.float64]) -> list[float]:
    """Without the last digits, which are of the graph's float32 arithmetic."""
    return [float(f"{value:.6g}") + 0.0 for value in values]
