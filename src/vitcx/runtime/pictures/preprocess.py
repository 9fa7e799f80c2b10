"""Resize, crop and normalise a picture as the model was trained, and the way back.

The same steps, on the same library, as the timm and torchvision evaluation transforms: resize (PIL,
antialiased), centre crop, scale to [0, 1], subtract the mean, divide by the standard deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import Manifest
from vitcx.runtime.pictures.decoding import MAX_PIXELS
from vitcx.runtime.pictures.reading import (
    DecodedPicture,
    EncodedPicture,
    as_host_array,
    from_uint8_array,
    is_array_like,
    read_picture,
)

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class Prepared:
    """A picture ready for the model.

    Attributes
    ----------
    pixels : (channels,H,W) float32, normalised, C-contiguous.
    original : the picture as a person sees it, RGB. Of an array that is no picture of one or three
        channels, its first channels: see `denormalise`.
    box : (left, top, right, bottom), the part of `original` that the model sees, in its pixels;
        not rounded, and it may reach outside where the crop was padded.
    """

    pixels: NDArray[np.float32]
    original: Image.Image
    box: tuple[float, float, float, float]


def prepare(source: Any, manifest: Manifest) -> Prepared:
    """Make the model's input of a path, a PIL image or an array.

    An (H,W,3) uint8 array is a picture; a (channels,H,W) floating array is taken as already
    normalised and must have the model's size. An array on a GPU is copied to the host. A model of
    one channel is given a picture's grey values; one of another number than one and three takes
    floating arrays alone.

    Raises
    ------
    InputError
        If the picture cannot be read, or an array has the wrong shape, type or non-finite values.
    """
    if is_array_like(source):
        array = as_host_array(source)
        if np.issubdtype(array.dtype, np.floating):
            return _from_normalised(array, manifest)
        _refuse_pictures(manifest)
        picture = from_uint8_array(array)
    else:
        known = isinstance(source, Image.Image | EncodedPicture | DecodedPicture | str)
        if not known and not hasattr(source, "__fspath__"):
            raise InputError(
                f"cannot explain a {type(source).__name__}: give a path, a PIL image, an (H,W,3) "
                "uint8 array or a normalised (3,H,W) float array"
            )
        _refuse_pictures(manifest)
        picture = read_picture(source)
    seen = picture.convert("L") if manifest.input_channels == 1 else picture
    resized, left, top = _resized_size(picture.size, manifest)
    height, width = manifest.input_size
    scale_x, scale_y = picture.width / resized[0], picture.height / resized[1]
    box = (
        left * scale_x,
        top * scale_y,
        (left + width) * scale_x,
        (top + height) * scale_y,
    )
    resample = _FILTERS[manifest.interpolation]
    if resized[0] * resized[1] > MAX_PIXELS:
        # A very long, thin picture: resize only what the crop keeps. The same pixels up to the
        # rounding of the box, without the gigabytes.
        crop = seen.resize((width, height), resample, box=box)
    else:
        small = seen.resize(resized, resample)
        crop = small.crop((left, top, left + width, top + height))
    return Prepared(normalise(np.asarray(crop), manifest), picture, box)


def normalise(rgb: NDArray[np.uint8], manifest: Manifest) -> NDArray[np.float32]:
    """(H,W,3) or grey (H,W) uint8 to (channels,H,W) float32: ``(rgb / 255 - mean) / std``."""
    mean = np.asarray(manifest.mean, dtype=np.float32)
    std = np.asarray(manifest.std, dtype=np.float32)
    values = rgb if rgb.ndim == 3 else rgb[..., None]
    scaled = (values.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def denormalise(pixels: NDArray[np.float32], manifest: Manifest) -> Image.Image:
    """The picture that a normalised (channels,H,W) array shows, clipped to 8 bits, as RGB.

    One or two channels: the first, in grey. More: the first three as red, green and blue.
    """
    mean = np.asarray(manifest.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(manifest.std, dtype=np.float32)[:, None, None]
    rgb = np.clip(np.rint((pixels * std + mean) * 255), 0, 255).astype(np.uint8)
    if len(rgb) < 3:
        return Image.fromarray(np.ascontiguousarray(rgb[0])).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(rgb[:3].transpose(1, 2, 0)))


def _refuse_pictures(manifest: Manifest) -> None:
    """Refuse a picture for a model whose channels are not those of a picture."""
    channels = manifest.input_channels
    if channels not in (1, 3):
        height, width = manifest.input_size
        raise InputError(
            f"this model takes {channels} channels, and a picture has red, green and blue: give "
            f"normalised ({channels},{height},{width}) float arrays (--input-npy)"
        )


def _from_normalised(array: NDArray[Any], manifest: Manifest) -> Prepared:
    channels = manifest.input_channels
    height, width = manifest.input_size
    if array.shape != (channels, height, width):
        also = ", or (H,W,3) uint8 pictures of any size" if channels in (1, 3) else ""
        raise InputError(
            f"the float array has shape {array.shape}: this model takes normalised "
            f"({channels},{height},{width}) arrays{also}"
        )
    pixels = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise InputError(
            "the float array holds NaN or infinite values: normalised pixels are finite"
        )
    return Prepared(pixels, denormalise(pixels, manifest), (0.0, 0.0, float(width), float(height)))


def _resized_size(size: tuple[int, int], manifest: Manifest) -> tuple[tuple[int, int], int, int]:
    """(width, height) after the resize, and the crop's left and top there."""
    width, height = size
    in_height, in_width = manifest.input_size
    goal_height = math.floor(in_height / manifest.crop_fraction)
    goal_width = math.floor(in_width / manifest.crop_fraction)
    if manifest.crop_mode == "squash":
        resized = (goal_width, goal_height)
    elif goal_height == goal_width:
        # The short side becomes the goal and the long one is rounded down, as torchvision does.
        if width <= height:
            resized = (goal_width, int(goal_width * height / width))
        else:
            resized = (int(goal_height * width / height), goal_height)
    else:
        ratio = min(width / goal_width, height / goal_height)
        resized = (round(width / ratio), round(height / ratio))
    left = round((resized[0] - in_width) / 2)
    top = round((resized[1] - in_height) / 2)
    return resized, left, top
