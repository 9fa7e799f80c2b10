"""The contract between the explainer and an engine.

A session runs one bundle on one device. It is safe to call from several threads. Inputs are checked
at the public boundary, not here.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.host.blend import Job

FloatArray = NDArray[np.float32]


@dataclass
class Batch:
    """Rows to score, described and not yet made: the engine blends them where its input lies.

    Attributes
    ----------
    images : each (3,H,W) float32; a job names one by its place here.
    masks : each (h,w) float32; likewise.
    jobs : what fills which row.
    rows : how many rows are filled, 1 to the session's `batch_size`; they are the first ones.
    """

    images: list[FloatArray] = field(default_factory=list)
    masks: list[FloatArray] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    rows: int = 0


@dataclass(frozen=True)
class Scores:
    """The answer to a `Batch`: (rows, C) float32 probabilities, and the seconds each part took."""

    probabilities: FloatArray
    blend_seconds: float
    forward_seconds: float


class Session(Closing, abc.ABC):
    """One bundle on one engine. A context manager: leaving it frees what it owns.

    Attributes
    ----------
    engine : the engine's name, as the user gives it.
    device : where it runs, in words.
    precision : what it computes in; empty where that is as the bundle's graph says.
    encoder_precision : the same of `encode`, where that is not what its graph says.
    batch_size : the rows of a full mask batch.
    """

    engine: str
    device: str
    precision: str = ""
    encoder_precision: str = ""
    batch_size: int

    @abc.abstractmethod
    def encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(N,3,H,W) float32 to probabilities (N,C) and embedding (N,D,h,w), both float32.

        By the bundle's `encoder`; the others are by its own graph.
        """

    @abc.abstractmethod
    def score(self, batch: Batch) -> Scores:
        """Blend and score the rows of a batch."""

    @abc.abstractmethod
    def predict(self, images: FloatArray) -> FloatArray:
        """(N,3,H,W) float32 to probabilities (N,C) float32, for any N."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free what the session owns. Twice does no harm."""
