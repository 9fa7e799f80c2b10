"""Compares an exported graph with the module it came from: names, axes, shapes, then values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from vitcx.export.graph.to_onnx import OUTPUTS
from vitcx.export.preprocessing import Preprocessing
from vitcx.runtime.errors import BundleError
from vitcx.runtime.manifest import EMBEDDING, INPUT, PROBABILITIES, TOKENS
from vitcx.runtime.onnx_runtime import import_onnxruntime, open_on_cpu
from vitcx.runtime.pictures.reading import read_picture

Array = NDArray[np.float32]

# One and an odd number: a graph with its batch fixed, or folded into another axis, fails at one.
BATCH_SIZES = (1, 3)
_SEED = 20240814
_RANKS = {INPUT: 4, PROBABILITIES: 2, EMBEDDING: 4, TOKENS: 3}


@dataclass(frozen=True)
class Tolerance:
    """Largest differences that an export may have.

    Attributes
    ----------
    probabilities : absolute, over all classes; of scores beyond 1, as a fraction of the largest.
    embedding_rms : root mean square of the difference, as a fraction of the embedding's own.
    embedding_max : largest difference, as a fraction of the embedding's largest magnitude.
    team_relative : of a team's probabilities, as a fraction of the largest of them.
    """

    probabilities: float
    embedding_rms: float
    embedding_max: float
    team_relative: float = math.inf


# The two programs add the same float32 numbers in another order. On DeiT-Tiny's trained weights
# that is 7e-7 in the probabilities and 1e-5 of the embedding (rms). A few tokens amplify rounding:
# torch itself is there 3e-4 away from float64, hence the wide third figure. A wrong axis, epsilon
# or activation is off by 1e-3 or more in the rms. With random weights all probabilities are about
# 1e-3: of a team's the share is looked at too. Rounding changes it by 1e-4, another patch by 0.1.
FLOAT32 = Tolerance(probabilities=1e-4, embedding_rms=1e-4, embedding_max=5e-3, team_relative=1e-2)


@dataclass(frozen=True)
class Difference:
    """How far two runs are apart, in the terms of `Tolerance`, and the embedding absolutely."""

    probabilities: float = 0.0
    embedding_rms: float = 0.0
    embedding_max: float = 0.0
    embedding_max_abs: float = 0.0

    @classmethod
    def between(cls, got: Sequence[Array], expected: Sequence[Array]) -> Difference:
        """Of two pairs (probabilities (B,C), embedding (B,D,h,w)); `expected` is the scale."""
        probabilities, embedding = (
            np.abs(a.astype(np.float64) - b) for a, b in zip(got, expected, strict=True)
        )
        scale = np.abs(expected[1]).astype(np.float64)
        unit = max(1.0, float(np.abs(expected[0]).max()))  # a regression's values have any size
        tiny = np.finfo(np.float32).tiny  # an embedding of zeros has no scale
        return cls(
            float(probabilities.max()) / unit,
            float(np.sqrt(np.mean(embedding**2)) / max(np.sqrt(np.mean(scale**2)), tiny)),
            float(embedding.max() / max(scale.max(), tiny)),
            float(embedding.max()),
        )

    def worst(self, other: Difference) -> Difference:
        """The larger of each figure, NaN if either is: Python's `max` would drop it."""
        return Difference(*np.maximum(astuple(self), astuple(other)).tolist())

    def within(self, tolerance: Tolerance) -> bool:
        """False as well for a NaN."""
        return (
            self.probabilities <= tolerance.probabilities
            and self.embedding_rms <= tolerance.embedding_rms
            and self.embedding_max <= tolerance.embedding_max
        )


def check_parity(
    path: Path,
    module: nn.Module,
    preprocessing: Preprocessing,
    tolerance: Tolerance = FLOAT32,
    pictures: Sequence[Path] = (),
    outputs: Sequence[str] = OUTPUTS,
) -> dict[str, float]:
    """Compare the graph at `path` with `module` on noise and on pictures.

    Parameters
    ----------
    path : of the ONNX graph.
    module : images (B,channels,H,W) float32 to (probabilities (B,C), embedding (B,D,h,w)), and what
        else.
    preprocessing : size and normalisation of the inputs.
    tolerance : largest differences allowed.
    pictures : files to compare on as well; drawn scenes are always used.
    outputs : of the graph, in its order; the first two are compared here.

    Returns
    -------
    dict
        Largest differences, the tolerances, and the number of images, for the manifest.

    Raises
    ------
    BundleError
        If anything differs by more than it may.
    """
    onnxruntime = import_onnxruntime("vitcx export", "export")
    session = open_on_cpu(onnxruntime, path)
    _check_interface(session, outputs)
    difference, count = Difference(), 0
    for images in _batches(preprocessing, pictures):
        with torch.no_grad():
            expected = [t.numpy() for t in module(torch.from_numpy(images))[: len(OUTPUTS)]]
        got = session.run(list(OUTPUTS), {INPUT: images})
        for name, mine, theirs in zip(OUTPUTS, got, expected, strict=True):
            if mine.shape != theirs.shape:
                raise BundleError(
                    f"the exported graph gives {name} {mine.shape} and torch {theirs.shape}: "
                    "the export was deleted"
                )
        difference = difference.worst(Difference.between(got, expected))
        count += len(images)
    if not difference.within(tolerance):
        raise BundleError(
            "the exported graph differs from torch by "
            f"{difference.probabilities:.1e} in the probabilities "
            f"(at most {tolerance.probabilities:.0e}), {difference.embedding_rms:.1e} of the "
            f"embedding's rms (at most {tolerance.embedding_rms:.0e}) and "
            f"{difference.embedding_max:.1e} of its largest magnitude "
            f"(at most {tolerance.embedding_max:.0e}): the export was deleted"
        )
    return {
        "images": float(count),
        "probabilities_max_abs": difference.probabilities,
        "probabilities_tolerance": tolerance.probabilities,
        "embedding_max_abs": difference.embedding_max_abs,
        "embedding_max_relative": difference.embedding_max,
        "embedding_max_relative_tolerance": tolerance.embedding_max,
        "embedding_rms_relative": difference.embedding_rms,
        "embedding_rms_relative_tolerance": tolerance.embedding_rms,
    }


def _check_interface(session: Any, outputs: Sequence[str]) -> None:
    """Names, element types, ranks, and that of all axes only the batch is dynamic."""
    for kind, values, names in (
        ("inputs", session.get_inputs(), (INPUT,)),
        ("outputs", session.get_outputs(), tuple(outputs)),
    ):
        if tuple(v.name for v in values) != names:
            raise BundleError(
                f"the exported graph's {kind} are {[v.name for v in values]}, "
                f"expected {list(names)}"
            )
        for value in values:
            rank = _RANKS[value.name]
            fixed = [isinstance(axis, int) for axis in value.shape]
            if value.type != "tensor(float)" or fixed != [False] + [True] * (rank - 1):
                raise BundleError(
                    f"the exported {value.name} is {value.type} {value.shape}, expected float32 of "
                    f"{rank} axes with a dynamic batch and nothing else dynamic: the export was "
                    "deleted (in a model's code, len(images) fixes the batch, images.shape[0] "
                    "does not)"
                )


def _batches(p: Preprocessing, pictures: Sequence[Path]) -> Iterator[Array]:
    """Normalised batches (B,channels,H,W): noise and scenes of each size, and the pictures."""
    rng = np.random.default_rng(_SEED)
    for size in BATCH_SIZES:
        yield rng.standard_normal((size, p.input_channels, *p.input_size), dtype=np.float32)
        yield normalised(np.stack([scene(p.input_size, rng) for _ in range(size)]), p)
    for path in pictures:
        yield normalised(_read(path, p.input_size)[None], p)


def scene(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """A drawn picture (H,W,3) in [0,1]: a shaded sky, discs and grain, as smooth as photographs."""
    height, width = size
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    top, bottom = rng.random((2, 3), dtype=np.float32)
    picture = top + (bottom - top) * y[..., None]
    for _ in range(4):
        cy, cx, radius = rng.random(3) * (1, 1, 0.3) + (0, 0, 0.05)
        inside = np.clip((radius - np.hypot(y - cy, x - cx)) * 40 + 0.5, 0, 1)[..., None]
        picture = picture * (1 - inside) + rng.random(3) * inside
    grain = rng.normal(0, 0.02, (height, width, 3))
    clipped: Array = np.clip(picture + grain, 0, 1).astype(np.float32)
    return clipped


def normalised(pictures: Array, p: Preprocessing) -> Array:
    """(B,H,W,3) in [0,1] to (B,channels,H,W), normalised; grey for one channel.

    For another number the colours are repeated: the comparison needs no meaning, only values.
    """
    count = p.input_channels
    if count == 1:
        pictures = pictures @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
    elif count != 3:
        pictures = pictures[..., np.arange(count) % 3]
    mean, std = np.array(p.mean, dtype=np.float32), np.array(p.std, dtype=np.float32)
    return np.ascontiguousarray(((pictures - mean) / std).transpose(0, 3, 1, 2))


def _read(path: Path, size: tuple[int, int]) -> Array:
    """A picture file (H,W,3) in [0,1], squashed: both programs see the same, whatever the crop."""
    picture = read_picture(path).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float32) / np.float32(255)
