"""The contract between the explainer and an engine.

A session runs one bundle on one device. It is safe to call from several threads, in the process
that opened it. Inputs are checked at the public boundary, not here.
"""

from __future__ import annotations

import abc
import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.host.blend import Perturbation
from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.errors import EngineError

FloatArray = NDArray[np.float32]
_NO_TEAMS = "the engine {!r} scores no teams of tokens with this bundle: take hidden='pixels'"


@dataclass
class PixelBatch:
    """Rows of pixels, described and not yet made: the engine blends them where its input lies.

    Attributes
    ----------
    images : each (3,H,W) float32; a perturbation names one by its place here.
    masks : each (h,w) float32, all of one resolution; likewise.
    perturbations : what fills which row.
    rows : how many rows are filled, 1 to the session's `batch_size`; they are the first ones.
    """

    images: list[FloatArray] = field(default_factory=list)
    masks: list[FloatArray] = field(default_factory=list)
    perturbations: list[Perturbation] = field(default_factory=list)
    rows: int = 0


@dataclass
class TeamBatch:
    """Rows of tokens: each is a picture's prefix tokens and the tokens of a team of its patches.

    Attributes
    ----------
    tokens : each (T,W) float32, a picture's, as `Session.encode_tokens` gave them.
    pictures : the place in `tokens` of each row's picture.
    patches : each (n,) int64, the patches that a row keeps; n is the same for all rows.
    """

    tokens: list[FloatArray] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    patches: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class EncodedMasks:
    """What an engine that makes masks makes of pictures.

    Attributes
    ----------
    probabilities : (N,C) float32.
    masks : of each picture, (K,h,w) float32; None where none were ordered, and where the embedding
        has infinite values or NaN.
    tokens : (N,T,W) float32, where they were asked for.
    """

    probabilities: FloatArray
    masks: list[FloatArray | None]
    tokens: FloatArray | None = None


@dataclass(frozen=True)
class Scores:
    """The answer to a batch: (rows, C) float32 probabilities, and the seconds each part took."""

    probabilities: FloatArray
    blend_seconds: float
    forward_seconds: float


class Session(Closing, abc.ABC):
    """One bundle on one engine. A context manager: leaving it frees what it owns.

    The public methods look after the session's life; an engine writes those with an underscore.
    Closing waits for the calls that are running; a later call, or one in another process, is
    refused.

    Attributes
    ----------
    engine : the engine's name, as the user gives it.
    device : where it runs, in words.
    precision : what it computes in; empty where that is as the bundle's graph says.
    encoder_precision : the same of `encode`, where that is not what its graph says.
    batch_size : the rows of a full batch.
    plan : which compiled plan it runs, in words; empty where the engine has none.
    scores_teams : whether it scores teams of tokens: the bundle has the graph, and the engine runs
        it.
    makes_masks : whether it makes and clusters masks where the embedding lies.

    Raises
    ------
    EngineError
        From every call: the session is closed, or was opened in another process.
    """

    engine: str
    device: str
    precision: str = ""
    encoder_precision: str = ""
    plan: str = ""
    batch_size: int
    scores_teams: bool = False
    makes_masks: bool = False

    def __init__(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._callers: list[int] = []  # the threads of the calls that are running
        self._closed = False

    def encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(N,3,H,W) float32 to probabilities (N,C) and embedding (N,D,h,w), both float32.

        By the bundle's `encoder`; the others are by its own graph.
        """
        with self._call():
            return self._encode(images)

    def score(self, batch: PixelBatch) -> Scores:
        """Blend and score the rows of a batch."""
        with self._call():
            return self._score(batch)

    def encode_tokens(self, images: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """As `encode`, and the tokens (N,T,W) float32 that `score_teams` takes.

        Raises
        ------
        EngineError
            If `scores_teams` is False, or as all calls.
        """
        with self._call():
            return self._encode_tokens(images)

    def encode_masks(
        self, images: FloatArray, orders: Sequence[MaskOrder | None], *, tokens: bool = False
    ) -> EncodedMasks:
        """Probabilities and masks of pictures (N,3,H,W) float32; the embedding stays where it is.

        Parameters
        ----------
        orders : one for each picture; None where no masks are wanted.
        tokens : whether tokens are wanted too, which only an engine with `scores_teams` gives.

        Raises
        ------
        EngineError
            If `makes_masks` is False, or as all calls.
        """
        with self._call():
            return self._encode_masks(images, orders, tokens)

    def score_teams(self, batch: TeamBatch) -> Scores:
        """Score rows of tokens.

        Raises
        ------
        EngineError
            If `scores_teams` is False, or as all calls.
        """
        with self._call():
            return self._score_teams(batch)

    def score_rows(self, batch: PixelBatch | TeamBatch) -> Scores:
        """Score a batch of either sort."""
        return self.score_teams(batch) if isinstance(batch, TeamBatch) else self.score(batch)

    def predict(self, images: FloatArray) -> FloatArray:
        """(N,3,H,W) float32 to probabilities (N,C) float32, for any N."""
        with self._call():
            return self._predict(images)

    def close(self) -> None:
        """Wait for the calls that are running, then free what the session owns.

        Twice does no harm. In another process than the session's it does nothing.
        """
        if os.getpid() != self._process:
            return
        with self._changed:
            if threading.get_ident() in self._callers:
                raise EngineError("a session cannot be closed by one of its own calls")
            first, self._closed = not self._closed, True
            self._changed.wait_for(lambda: not self._callers)
        if first:
            self._close()

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Keep the session open for a call of this thread."""
        # Before the lock, which another thread may have held when the process was forked.
        check_process(self._process)
        caller = threading.get_ident()
        with self._changed:
            if self._closed:
                raise EngineError("the session is closed: load the bundle again")
            self._callers.append(caller)
        try:
            yield
        finally:
            with self._changed:
                self._callers.remove(caller)
                self._changed.notify_all()

    @abc.abstractmethod
    def _encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `encode`."""

    @abc.abstractmethod
    def _score(self, batch: PixelBatch) -> Scores:
        """As `score`."""

    @abc.abstractmethod
    def _predict(self, images: FloatArray) -> FloatArray:
        """As `predict`."""

    def _encode_tokens(self, images: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """As `encode_tokens`; for sessions whose `scores_teams` is True."""
        raise EngineError(_NO_TEAMS.format(self.engine))

    def _encode_masks(
        self, images: FloatArray, orders: Sequence[MaskOrder | None], tokens: bool
    ) -> EncodedMasks:
        """As `encode_masks`; for sessions whose `makes_masks` is True."""
        raise EngineError(f"the engine {self.engine!r} makes no masks: take those of its embedding")

    def _score_teams(self, batch: TeamBatch) -> Scores:
        """As `score_teams`; for sessions whose `scores_teams` is True."""
        raise EngineError(_NO_TEAMS.format(self.engine))

    @abc.abstractmethod
    def _close(self) -> None:
        """Free what the session owns: called once, when no call is running."""


def check_process(opened_in: int) -> None:
    """Raise `EngineError` in another process than that one.

    A forked child has none of its parent's threads: engines, and whoever waits for one, would wait
    for ever.
    """
    if os.getpid() != opened_in:
        raise EngineError(
            "this explainer was loaded in another process: call vitcx.load in this one"
        )
