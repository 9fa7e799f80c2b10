"""The check of a bundle: one picture, and what the model in float32 made of it at export.

It is the file ``check.npz`` with three float32 arrays: `images` (1,channels,H,W), which is the
model's input as it is, `probabilities` (1,C) and `embedding` (1,D,h,w). Every engine encodes and
scores the picture when it opens (see `vitcx.runtime.engines.session_check`).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.errors import BundleError
from vitcx.runtime.manifest import CHECK_NAME, Manifest

FloatArray = NDArray[np.float32]

# Of an array's header in the file.
_MOST_HEADER_BYTES = 4096
# Logarithms of smaller probabilities say more about rounding than about the model.
_LEAST_PROBABILITY = 1e-6
# Scores that all but agree have no scale of their own.
_LEAST_SCALE = 0.1


@dataclass(frozen=True)
class CheckRecord:
    """The arrays of the file; see the head of this module."""

    images: FloatArray
    probabilities: FloatArray
    embedding: FloatArray


def write_record(folder: Path, record: CheckRecord) -> None:
    """Write the file into a bundle's folder. The same arrays give the same bytes."""
    np.savez_compressed(
        folder / CHECK_NAME,
        images=record.images,
        probabilities=record.probabilities,
        embedding=record.embedding,
    )


def read_record(folder: Path, manifest: Manifest) -> CheckRecord | None:
    """The record of a bundle; None for a bundle of before there were any.

    Raises
    ------
    BundleError
        The file is not one, or its arrays have other shapes than the manifest says.
    """
    if CHECK_NAME not in manifest.files:
        return None
    shapes = {
        "images": (1, manifest.input_channels, *manifest.input_size),
        "probabilities": (1, manifest.num_classes),
        "embedding": (1, manifest.channels, *manifest.grid),
    }
    path = folder / CHECK_NAME
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _read(archive, name, shape) for name, shape in shapes.items()}
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise BundleError(f"'{path}' is not a bundle's check file: {error}") from None
    except (zlib.error, NotImplementedError, RuntimeError, SyntaxError) as error:
        raise BundleError(f"'{path}' is not a bundle's check file: {error}") from None
    return CheckRecord(**arrays)


def _read(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> FloatArray:
    entry = archive.getinfo(f"{name}.npy")
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if entry.file_size > size + _MOST_HEADER_BYTES:
        raise ValueError(f"{name} is larger than the manifest says")
    with archive.open(entry) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected finite float32 {shape}")
    return np.ascontiguousarray(array)


def drawn_picture(size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> FloatArray:
    """A picture (1,channels,H,W), normalised: waves, a disc and a chessboard, by a fixed rule."""
    height, width = size
    channel = np.arange(len(mean), dtype=np.float64)[:, None, None]
    y = ((np.arange(height) + 0.5) / height)[:, None]
    x = ((np.arange(width) + 0.5) / width)[None]
    picture = 0.5 + 0.3 * np.sin(2 * np.pi * ((1 + channel) * x + y))
    disc = np.broadcast_to(np.hypot(y - 0.4, x - 0.55) < 0.25, picture.shape)
    board = np.broadcast_to((np.floor(9 * x) + np.floor(9 * y)) % 2 * (y > 0.7) > 0, picture.shape)
    picture = np.where(disc, 0.9 - 0.6 * channel / len(mean), picture)
    picture = np.where(board, 0.1 + 0.3 * channel / len(mean), picture)
    # As a picture of 8 bits: it takes little room in the file.
    levels = np.rint(255 * picture) / 255
    scale = (np.asarray(values, np.float64)[:, None, None] for values in (mean, std))
    shift, spread = scale
    return ((levels - shift) / spread).astype(np.float32)[None]


def embedding_difference(found: FloatArray, expected: FloatArray) -> float:
    """How far two embeddings are apart: the root mean square, as a fraction of the second one's."""
    return _relative(found, expected, float(np.finfo(np.float32).tiny))


def scores_difference(found: FloatArray, expected: FloatArray, manifest: Manifest) -> float:
    """How far the scores of a picture are apart, as `embedding_difference` has it.

    Of probabilities the logarithms are compared, less their mean: those are the model's logits, and
    a class of little probability counts as much as another.
    """
    if not manifest.scores_are_probabilities:
        return _relative(found, expected, float(np.finfo(np.float32).tiny))
    first, second = (
        np.log(np.maximum(scores.astype(np.float64), _LEAST_PROBABILITY))
        for scores in (found, expected)
    )
    if scores_sum_to_one(manifest):
        first, second = first - first.mean(), second - second.mean()
    return _relative(first, second, _LEAST_SCALE)


def scores_sum_to_one(manifest: Manifest) -> bool:
    """Whether the scores are of classes that exclude one another."""
    return manifest.target_kind == "class"


def _relative(found: NDArray[np.floating], expected: NDArray[np.floating], least: float) -> float:
    first, second = found.astype(np.float64), expected.astype(np.float64)
    scale = max(float(np.sqrt(np.mean(second**2))), least)
    return float(np.sqrt(np.mean((first - second) ** 2))) / scale
