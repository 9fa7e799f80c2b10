"""What the engines on a CPU have in common: passes of a few rows, side by side."""

from __future__ import annotations

import abc
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.blend import blend
from vitcx.kernels.host.noise import NoiseCache
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.cores import available_cores
from vitcx.runtime.engines.cpu.parallel_passes import ParallelPasses
from vitcx.runtime.engines.graph_session import GraphSession
from vitcx.runtime.engines.session import PixelBatch, Scores, TeamBatch
from vitcx.runtime.manifest import INPUT, PATCHES, PICTURES, PROBABILITIES, TOKENS

FloatArray = NDArray[np.float32]

# Rows of tokens in a pass, for each of pixels: a team has half of the tokens.
TEAM_ROWS = 2


class CpuSession(GraphSession):
    """A session whose rows are blended in the host's memory and run in passes side by side.

    A subclass opens its engine and leaves it in `_scorer` and `_encoder`, which may be the same,
    and, where the bundle has teams, in `_team_scorer`.

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
        self._team_scorer: Any = None
        self._pass_rows = pass_rows
        self._passes = ParallelPasses(self.passes)
        self._shape = (batch_size, bundle.manifest.input_channels, *bundle.manifest.input_size)
        self.scores_teams = bundle.has_teams
        self._noise = NoiseCache()
        self._local = threading.local()

    def _encoded(self, images: FloatArray, *outputs: str) -> list[FloatArray]:
        return self._passes.run(lambda: self._run(self._encoder, {INPUT: images}, *outputs))

    def _predict(self, images: FloatArray) -> FloatArray:
        def run(part: slice) -> FloatArray:
            return self._run(self._scorer, {INPUT: images[part]}, PROBABILITIES)[0]

        return np.concatenate(self._passes.map(run, len(images), self._pass_rows))

    def _score(self, batch: PixelBatch) -> Scores:
        start = time.perf_counter()
        rows = self._buffer()

        def make(part: slice) -> None:
            blend(batch.images, batch.masks, batch.perturbations[part], rows, self._noise)

        count = len(batch.perturbations)
        self._passes.map(make, count, -(-count // self.passes))
        blended = time.perf_counter()
        probabilities = self._predict(rows[: batch.rows])
        return Scores(probabilities, blended - start, time.perf_counter() - blended)

    def _score_teams(self, batch: TeamBatch) -> Scores:
        start = time.perf_counter()
        pictures = np.asarray(batch.pictures, dtype=np.int64)
        patches = np.stack(batch.patches)

        def run(part: slice) -> FloatArray:
            # A pass takes the tokens of its own pictures alone.
            used, own = np.unique(pictures[part], return_inverse=True)
            feeds = {
                TOKENS: np.stack([batch.tokens[i] for i in used]),
                PICTURES: own.reshape(-1).astype(np.int64),
                PATCHES: patches[part],
            }
            return self._run(self._team_scorer, feeds, PROBABILITIES)[0]

        probabilities = np.concatenate(
            self._passes.map(run, batch.rows, TEAM_ROWS * self._pass_rows)
        )
        return Scores(probabilities, 0.0, time.perf_counter() - start)

    def _close(self) -> None:
        self._scorer = self._encoder = self._team_scorer = None
        self._passes.close()

    @abc.abstractmethod
    def _run(
        self, engine: Any, feeds: Mapping[str, NDArray[Any]], *outputs: str
    ) -> list[FloatArray]:
        """One pass of an opened graph; the answers, in the order of `outputs`, are the caller's."""

    def _buffer(self) -> FloatArray:
        """This thread's input rows: kept, so that a batch costs no allocation."""
        rows: FloatArray | None = getattr(self._local, "rows", None)
        if rows is None:
            rows = self._local.rows = np.empty(self._shape, dtype=np.float32)
        return rows
