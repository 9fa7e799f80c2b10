"""Deletion and insertion curves and the areas under them (section 4.1).

Pixels are taken in descending order of saliency. The deletion curve is the target's score
while they are replaced by a canvas; the insertion curve is that while they are put onto the canvas.
Source: Petsiuk, Das, Saenko, "RISE" (BMVC 2018). The frames of many pictures share the engine's
batches; the untouched picture and the empty canvas, which both curves visit, are scored once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from vitcx.evaluation.imputation import impute
from vitcx.runtime.engines.session import Session
from vitcx.runtime.errors import InputError

FloatArray = NDArray[np.float32]

CANVASES = ("zero", "mean", "blur", "road")
DEFAULT_STEPS = 56
# At 224 pixels this is the blur of the RISE paper's insertion game doubled: no object survives it.
_BLUR_SHARE = 10 / 224


@dataclass(frozen=True, eq=False)
class Question:
    """A map to be judged.

    Attributes
    ----------
    pixels : (3,H,W) float32, normalised.
    saliency : (H,W), finite; higher is more evidence.
    target : class index.
    """

    pixels: FloatArray
    saliency: FloatArray
    target: int


@dataclass(frozen=True, eq=False)
class Curves:
    """Probabilities of the target, each (steps + 1,) float32, from no pixel taken to all."""

    deletion: FloatArray
    insertion: FloatArray

    @property
    def deletion_auc(self) -> float:
        """Lower is more faithful."""
        return area(self.deletion)

    @property
    def insertion_auc(self) -> float:
        """Higher is more faithful."""
        return area(self.insertion)

    @property
    def difference(self) -> float:
        """Insertion minus deletion: 0 on average for a random order.

        On one canvas it is the Symmetric Relevance Gain (Blücher et al., "Decoupling pixel flipping
        and occlusion strategy for consistent XAI benchmarks", TMLR 2024).
        """
        return self.insertion_auc - self.deletion_auc


def area(curve: FloatArray) -> float:
    """Area under a curve over [0, 1], by trapezoids of equal width."""
    values = np.asarray(curve, dtype=np.float64)
    return float((values[1:] + values[:-1]).sum() / 2 / (len(values) - 1))


def pixel_ranks(saliency: FloatArray) -> NDArray[np.int64]:
    """(H,W) place of each pixel in descending order of saliency; ties in raster order."""
    order = np.argsort(-saliency.reshape(-1), kind="stable")
    ranks = np.empty(order.size, dtype=np.int64)
    ranks[order] = np.arange(order.size)
    return ranks.reshape(saliency.shape)


def taken_pixels(pixels: int, steps: int) -> NDArray[np.int64]:
    """(steps + 1,) how many pixels have been taken after each step: 0 to all, evenly."""
    return np.rint(np.linspace(0, pixels, steps + 1)).astype(np.int64)


def hider(pixels: FloatArray, canvas: str) -> Callable[[NDArray[np.bool_]], FloatArray]:
    """What makes a picture's frames: given (H,W), True where a pixel is hidden, the (3,H,W) frame.

    Parameters
    ----------
    pixels : (3,H,W) float32, normalised.
    canvas : ``road`` imputes hidden pixels from the others (see `vitcx.evaluation.imputation`);
        every other kind shows the pixels of `empty_canvas` in their place.
    """
    if canvas == "road":
        return lambda hidden: impute(pixels, hidden)
    empty = empty_canvas(pixels, canvas)
    return lambda hidden: np.where(hidden, empty, pixels)


def empty_canvas(pixels: FloatArray, kind: str) -> FloatArray:
    """(3,H,W) what hidden pixels become, whichever they are.

    ``zero`` is 0 in normalised units (the training set's mean colour), ``mean`` the picture's own
    mean colour, ``blur`` the picture after a wide Gaussian blur.
    """
    if kind == "zero":
        return np.zeros_like(pixels)
    if kind == "mean":
        return np.broadcast_to(pixels.mean(axis=(1, 2), keepdims=True), pixels.shape)
    width = _BLUR_SHARE * min(pixels.shape[1:])
    return np.asarray(gaussian_filter(pixels, (0, width, width)), dtype=np.float32)


def check_settings(steps: int, canvas: str) -> None:
    """Raise `InputError` for a step count below 1 or an unknown canvas."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps is {steps!r}: give a whole number of at least 1")
    if canvas not in CANVASES:
        raise InputError(f"canvas is {canvas!r}, not one of {', '.join(CANVASES)}")


@dataclass(eq=False)
class _Open:
    """A question whose frames are being scored; `scores` has 2 steps rows."""

    scores: FloatArray
    missing: int


def score_curves(
    session: Session,
    questions: Iterable[Question],
    *,
    steps: int = DEFAULT_STEPS,
    canvas: str = "zero",
) -> Iterator[Curves]:
    """Curves for each question, in order, their frames packed into full batches.

    Parameters
    ----------
    session : the engine that is asked.
    questions : read no faster than their frames are needed.
    steps : of each curve; 2 `steps` forward passes a question.
    canvas : one of `CANVASES`.

    Raises
    ------
    InputError
        For a bad setting, or a map of another size than its picture or with values not finite.
    """
    check_settings(steps, canvas)
    waiting: deque[_Open] = deque()
    owners: list[tuple[_Open, int, int]] = []
    buffer: FloatArray | None = None

    def flush() -> None:
        assert buffer is not None
        answers = session.predict(buffer[: len(owners)])
        for answer, (owner, row, target) in zip(answers, owners, strict=True):
            owner.scores[row] = answer[target]
            owner.missing -= 1
        owners.clear()

    for question in questions:
        _check(question)
        if buffer is None:
            buffer = np.empty((session.batch_size, *question.pixels.shape), dtype=np.float32)
        current = _Open(np.empty(2 * steps, dtype=np.float32), 2 * steps)
        waiting.append(current)
        for row, frame in enumerate(_frames(question, steps, canvas)):
            buffer[len(owners)] = frame
            owners.append((current, row, question.target))
            if len(owners) == len(buffer):
                flush()
        while waiting and not waiting[0].missing:
            yield _curves(waiting.popleft().scores)
    if owners:
        flush()
    while waiting:
        yield _curves(waiting.popleft().scores)


def _check(question: Question) -> None:
    if question.saliency.shape != question.pixels.shape[1:]:
        raise InputError(
            f"the map has shape {question.saliency.shape} and its picture "
            f"{question.pixels.shape[1:]}: give a map of the model's input size"
        )
    if not np.isfinite(question.saliency).all():
        raise InputError("the map holds NaN or infinite values: its order of pixels is undefined")


def _frames(question: Question, steps: int, canvas: str) -> Iterator[FloatArray]:
    """The deletion frames 0 to `steps`, then the insertion frames 1 to ``steps - 1``."""
    ranks = pixel_ranks(question.saliency)
    counts = taken_pixels(ranks.size, steps)
    hide = hider(question.pixels, canvas)
    for count in counts:
        yield hide(ranks < count)
    for count in counts[1:-1]:
        yield hide(ranks >= count)


def _curves(scores: FloatArray) -> Curves:
    steps = len(scores) // 2
    deletion = scores[: steps + 1]
    insertion = np.concatenate([deletion[-1:], scores[steps + 1 :], deletion[:1]])
    return Curves(deletion, insertion)
