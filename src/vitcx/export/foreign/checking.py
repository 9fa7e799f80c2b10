"""Compares the bundle's graph with the file that it was made of, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vitcx.export.foreign.head import Answers, Head
from vitcx.export.foreign.picture_input import PictureInput
from vitcx.export.foreign.places import Place
from vitcx.export.foreign.runner import Runner
from vitcx.export.graph.squares import Squares
from vitcx.export.preprocessing import Preprocessing
from vitcx.runtime.check_record import CheckRecord, drawn_picture
from vitcx.runtime.errors import BundleError
from vitcx.runtime.manifest import EMBEDDING, INPUT, PROBABILITIES, Manifest
from vitcx.runtime.onnx_runtime import import_onnxruntime, open_on_cpu
from vitcx.runtime.pictures.preprocess import prepare

FloatArray = NDArray[np.float32]

# The same arithmetic in another order, and rounded figures of a normalisation that was found: up to
# 1e-5. A picture taken for its neighbour, or a wrong normalisation, is off by 1e-2 and more.
SCORES_TOLERANCE = 1e-4
EMBEDDING_RMS_TOLERANCE = 1e-3
_BATCH = 3


@dataclass(frozen=True)
class Original:
    """The file's own graph: what it gives for one picture at a time.

    Attributes
    ----------
    runner : of the graph as it was read.
    source, place, answers, head : its input, embedding and answers, and what makes scores of them.
    preprocessing : of the bundle, whose pictures are normalised by its mean and std.
    input_mean, input_std : of what the file itself takes, in its own units: it gets
        (p - mean) / std of values p in [0, 1].
    """

    runner: Runner
    source: PictureInput
    place: Place
    answers: Answers
    head: Head
    preprocessing: Preprocessing
    input_mean: FloatArray
    input_std: FloatArray

    def feed(self, image: FloatArray) -> dict[str, NDArray[Any]]:
        """One picture (1,channels,H,W), normalised for the bundle, as the file takes it."""
        mean, std = (
            np.array(values)[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        pixels = image.astype(np.float64) * std + mean
        own = (pixels - self.input_mean[:, None, None]) / self.input_std[:, None, None]
        batch = self.source.batch or 1
        return self.source.feed(np.repeat(own, batch, axis=0))

    def run(self, image: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Scores (1,C) and embedding (1,D,h,w) of one picture."""
        wanted = [self.answers.value, self.place.value]
        found = self.runner.run(self.feed(image), wanted)
        embedding = self.place.arranged(found[self.place.value])
        return self.head.scores(found[self.answers.value])[:1], embedding[:1]


def compare(
    path: Path, original: Original, squares: Squares, pictures: Sequence[Path]
) -> tuple[dict[str, float], CheckRecord]:
    """Compare the graph at `path` with the file's, in batches of one and three.

    Returns
    -------
    tuple
        Figures for the manifest, as exports from torch have them, and the record of the bundle's
        check.

    Raises
    ------
    BundleError
        If anything differs by more than it may.
    """
    onnxruntime = import_onnxruntime("vitcx export", "onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = open_on_cpu(onnxruntime, path, options)
    p = original.preprocessing
    record: CheckRecord | None = None
    scores = rms = largest = relative = 0.0
    count = 0
    for images in _batches(p, squares, pictures):
        expected = [original.run(images[i : i + 1]) for i in range(len(images))]
        theirs = [np.concatenate(part) for part in zip(*expected, strict=True)]
        mine = session.run([PROBABILITIES, EMBEDDING], {INPUT: images})
        for name, found, wanted in zip((PROBABILITIES, EMBEDDING), mine, theirs, strict=True):
            if found.shape != wanted.shape:
                raise BundleError(
                    f"the bundle's graph gives {name} {found.shape} and the file {wanted.shape} "
                    f"for a batch of {len(images)}: nothing was written"
                )
            if not np.isfinite(wanted).all():
                raise BundleError(
                    f"the graph gives NaN or infinite {name} for ordinary pictures: look at its "
                    "weights and at the mean and standard deviation of its pictures"
                )
        unit = max(1.0, float(np.abs(theirs[0]).max()))
        off = np.abs(mine[1].astype(np.float64) - theirs[1])
        scale = np.abs(theirs[1]).astype(np.float64)
        tiny = float(np.finfo(np.float32).tiny)
        figures = (
            float(np.abs(mine[0].astype(np.float64) - theirs[0]).max()) / unit,
            float(np.sqrt(np.mean(off**2)) / max(np.sqrt(np.mean(scale**2)), tiny)),
            float(off.max()),
            float(off.max() / max(scale.max(), tiny)),
        )
        scores, rms, largest, relative = (
            max(a, b) for a, b in zip((scores, rms, largest, relative), figures, strict=True)
        )
        count += len(images)
        if record is None:
            record = CheckRecord(images, theirs[0], theirs[1])
    if not (scores <= SCORES_TOLERANCE and rms <= EMBEDDING_RMS_TOLERANCE):
        raise BundleError(
            f"the bundle's graph differs from the file by {scores:.1e} in the scores (at most "
            f"{SCORES_TOLERANCE:.0e}) and {rms:.1e} of the embedding's rms (at most "
            f"{EMBEDDING_RMS_TOLERANCE:.0e}): nothing was written; if the file is for a fixed "
            "batch, export it again with a dynamic one"
        )
    assert record is not None
    return {
        "images": float(count),
        "probabilities_max_abs": scores,
        "probabilities_tolerance": SCORES_TOLERANCE,
        "embedding_max_abs": largest,
        "embedding_max_relative": relative,
        "embedding_rms_relative": rms,
        "embedding_rms_relative_tolerance": EMBEDDING_RMS_TOLERANCE,
    }, record


def _batches(p: Preprocessing, squares: Squares, pictures: Sequence[Path]) -> Iterator[FloatArray]:
    """Normalised batches, of 8-bit pictures: some files take nothing else. The first is of one."""
    yield drawn_picture(p.input_size, p.mean, p.std)
    mean, std = (np.array(values)[:, None, None] for values in (p.mean, p.std))
    levels = np.rint(255 * np.clip(0.5 + 0.25 * squares.images[-_BATCH:], 0, 1)) / 255
    yield ((levels - mean) / std).astype(np.float32)
    for path in pictures:
        yield prepare(path, cast(Manifest, p)).pixels[None]
