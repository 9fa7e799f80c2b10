"""How a model of transformers wants its pictures, in the manifest's terms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitcx.export.preprocessing import Preprocessing, crop_share
from vitcx.runtime.errors import InputError

# Pillow's numbers of its filters.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_FILE = "preprocessor_config.json"


def preprocessing_of_folder(
    model: str, config: Any, size: tuple[int, int] | None, *, local: bool
) -> Preprocessing:
    """From the model's ``preprocessor_config.json``.

    Parameters
    ----------
    model : folder, or name on the hub.
    config : of the model, for its size where the preprocessor has none.
    size : (H, W) that is asked for instead.

    Raises
    ------
    InputError
        If there is no such file, or it asks for what the runtime does not do.
    """
    return read_preprocessing(_read(model, local=local), config, size)


def read_preprocessing(
    values: dict[str, Any], config: Any, size: tuple[int, int] | None
) -> Preprocessing:
    """`values` of a preprocessor in the manifest's terms."""
    resized = _sides(values.get("size")) if values.get("do_resize", True) else None
    cropped = _sides(values.get("crop_size")) if values.get("do_center_crop", False) else None
    own = _sides(getattr(getattr(config, "vision_config", config), "image_size", None))
    goal = cropped or resized or own
    if goal is None:
        raise InputError("the preprocessor says no size of pictures: give --img-size")
    # A short side alone and no crop leaves pictures of any shape; the model has one, so the middle.
    short = values.get("size") if isinstance(values.get("size"), dict) else {}
    keeps_shape = "shortest_edge" in (short or {}) or cropped is not None
    share = 1.0
    if cropped and resized:
        share = min(1.0, crop_share(min(cropped), min(resized)))
    elif "crop_pct" in values and min(goal) < 384:  # ConvNeXt's way, whose others take it whole
        keeps_shape, share = True, float(values["crop_pct"])
    factor = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
    channels = int(getattr(config, "num_channels", None) or 3)
    mean, std = [0.0] * channels, [1.0] * channels
    if values.get("do_normalize", True):
        mean, std = list(values.get("image_mean", mean)), list(values.get("image_std", std))
    # Values are v·factor here and v/255 in the runtime.
    scale = factor * 255
    return Preprocessing(
        input_size=size or goal,
        mean=tuple(float(m) / scale for m in mean),
        std=tuple(float(s) / scale for s in std),
        crop_fraction=share,
        crop_mode="center" if keeps_shape else "squash",
        interpolation=_FILTERS.get(values.get("resample", 2), "bilinear"),
    )


def _sides(value: Any) -> tuple[int, int] | None:
    """(H, W) of what configurations write for a size."""
    if isinstance(value, dict):
        if "height" in value and "width" in value:
            return int(value["height"]), int(value["width"])
        side = value.get("shortest_edge")
        return (int(side), int(side)) if side else None
    if isinstance(value, list | tuple) and len(value) == 2:
        return int(value[0]), int(value[1])
    return (int(value), int(value)) if isinstance(value, int) else None


def _read(model: str, *, local: bool) -> dict[str, Any]:
    file = Path(model) / _FILE
    if not local:
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(model, _FILE))
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"'{model}' has no {_FILE}, so nobody knows how its pictures are made: save its image "
            "processor beside it (processor.save_pretrained(FOLDER))"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read '{file}': {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"'{file}' holds no object")
    found: dict[str, Any] = values.get("image_processor", values)
    return found
