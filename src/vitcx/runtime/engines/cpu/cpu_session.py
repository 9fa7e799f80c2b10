"""What the engines on a CPU have in common: passes of a few rows, side by side (see `lanes`)."""

from __future__ import annotations

import abc
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.blend import blend
from vitcx.kernels.host.noise import NoiseCache
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.cpu.parallel_passes import Lanes, available_cores
from vitcx.runtime.engines.session import Batch, Scores, Session
from vitcx.runtime.errors import EngineError

FloatArray = NDArray[np.float32]


class CpuSession(Session):
    """A session whose rows are blended in the host's memory and run in lanes.

    A subclass opens its engine and leaves it in `_scorer` and `_encoder`, which may be the same.

    Parameters
    ----------
    bundle : checked against its digests.
    threads : for a batch; None takes every core.
    batch_size : rows of a mask batch.
    lane_rows : rows of a pass, at least 1.

    Attributes
    ----------
    threads : taken in all.
    lanes : how many passes run side by side; an engine opens with what is left for each.
    """

    device = "CPU"

    def __init__(
        self, bundle: Bundle, threads: int | None, batch_size: int, lane_rows: int
    ) -> None:
        self.batch_size = batch_size
        self.threads = threads or available_cores()
        self.lanes = max(1, min(self.threads, batch_size // lane_rows))
        self._scorer: Any = None
        self._encoder: Any = None
        self._lane_rows = lane_rows
        self._lanes = Lanes(self.lanes)
        self._shape = (batch_size, bundle.manifest.input_channels, *bundle.manifest.input_size)
        self._noise = NoiseCache()
        self._local = threading.local()

    def encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        engine = self._opened(self._encoder)
        return self._lanes.run(lambda: self._encode(engine, images))

    def predict(self, images: FloatArray) -> FloatArray:
        """Probabilities of (N,3,H,W), N at least 1."""
        engine = self._opened(self._scorer)

        def run(part: slice) -> FloatArray:
            return self._predict(engine, images[part])

        return np.concatenate(self._lanes.map(run, len(images), self._lane_rows))

    def score(self, batch: Batch) -> Scores:
        start = time.perf_counter()
        rows = self._buffer()

        def make(part: slice) -> None:
            blend(batch.images, batch.masks, batch.jobs[part], rows, self._noise)

        self._lanes.map(make, len(batch.jobs), -(-len(batch.jobs) // self.lanes))
        blended = time.perf_counter()
        probabilities = self.predict(rows[: batch.rows])
        return Scores(probabilities, blended - start, time.perf_counter() - blended)

    def close(self) -> None:
        self._scorer = self._encoder = None
        self._lanes.close()

    @abc.abstractmethod
    def _encode(self, engine: Any, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `encode`, in one pass of `_encoder` that takes the place of a lane."""

    @abc.abstractmethod
    def _predict(self, engine: Any, images: FloatArray) -> FloatArray:
        """As `predict`, in one pass of `_scorer` on a lane; the answer is the caller's."""

    @staticmethod
    def _opened(engine: Any) -> Any:
        if engine is None:
            raise EngineError("the session is closed: load the bundle again")
        return engine

    def _buffer(self) -> FloatArray:
        """This thread's input rows: kept, so that a batch costs no allocation."""
        rows: FloatArray | None = getattr(self._local, "rows", None)
        if rows is None:
            rows = self._local.rows = np.empty(self._shape, dtype=np.float32)
        return rows
