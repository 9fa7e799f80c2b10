"""What the engines on a CPU have in common: passes of a few rows, side by side."""

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
from vitcx.runtime.engines.cpu.parallel_passes import ParallelPasses, available_cores
from vitcx.runtime.engines.session import PixelBatch, Scores, Session

FloatArray = NDArray[np.float32]


class CpuSession(Session):
    """A session whose rows are blended in the host's memory and run in passes side by side.

    A subclass opens its engine and leaves it in `_scorer` and `_encoder`, which may be the same.

    Parameters
    ----------
    bundle : checked against its digests.
    threads : for a batch; None takes every core.
    batch_size : rows of a mask batch.
    pass_rows : rows of a pass, at least 1.

    Attributes
    ----------
    threads : taken in all.
    passes : how many passes run side by side; an engine opens with what is left for each.
    """

    device = "CPU"

    def __init__(
        self, bundle: Bundle, threads: int | None, batch_size: int, pass_rows: int
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.threads = threads or available_cores()
        self.passes = max(1, min(self.threads, batch_size // pass_rows))
        self._scorer: Any = None
        self._encoder: Any = None
        self._pass_rows = pass_rows
        self._passes = ParallelPasses(self.passes)
        self._shape = (batch_size, bundle.manifest.input_channels, *bundle.manifest.input_size)
        self._noise = NoiseCache()
        self._local = threading.local()

    def _encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        return self._passes.run(lambda: self._run_encoder(self._encoder, images))

    def _predict(self, images: FloatArray) -> FloatArray:
        def run(part: slice) -> FloatArray:
            return self._run_scorer(self._scorer, images[part])

        return np.concatenate(self._passes.map(run, len(images), self._pass_rows))

    def _score(self, batch: PixelBatch) -> Scores:
        start = time.perf_counter()
        rows = self._buffer()

        def make(part: slice) -> None:
            blend(batch.images, batch.masks, batch.perturbations[part], rows, self._noise)

        self._passes.map(
            make, len(batch.perturbations), -(-len(batch.perturbations) // self.passes)
        )
        blended = time.perf_counter()
        probabilities = self._predict(rows[: batch.rows])
        return Scores(probabilities, blended - start, time.perf_counter() - blended)

    def _close(self) -> None:
        self._scorer = self._encoder = None
        self._passes.close()

    @abc.abstractmethod
    def _run_encoder(self, engine: Any, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `encode`, in one pass of `_encoder`."""

    @abc.abstractmethod
    def _run_scorer(self, engine: Any, images: FloatArray) -> FloatArray:
        """As `predict`, in one pass of `_scorer`; the answer is the caller's."""

    def _buffer(self) -> FloatArray:
        """This thread's input rows: kept, so that a batch costs no allocation."""
        rows: FloatArray | None = getattr(self._local, "rows", None)
        if rows is None:
            rows = self._local.rows = np.empty(self._shape, dtype=np.float32)
        return rows
