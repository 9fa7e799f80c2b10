"""Pack rows of any number of pictures into the engine's fixed-size batches.

A `Task` is one picture with its masks. Tasks are scored in the order they were added; a batch holds
the rows of as many tasks as fit, so only the last batch of a job is ever short. `Pipeline` decides
when a batch runs; this module only knows which rows are in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.host.blend import SKIP, Job
from vitcx.runtime.engines.session import Batch, Scores, Session
from vitcx.runtime.method.estimators import Estimator

FloatArray = NDArray[np.float32]


@dataclass(eq=False)
class Task:
    """One picture's rows.

    Attributes
    ----------
    image : (3,H,W) float32.
    masks : (K,h,w) float32.
    estimator : which rows each mask has.
    noise_std, seed : of the noise.
    targets : (T,) class indices whose scores are kept.
    scores : by row kind, (K,T) float32, filled as batches run.
    seconds : time by stage, this task's share of each batch.
    """

    image: FloatArray
    masks: FloatArray
    estimator: Estimator
    noise_std: float
    seed: int
    targets: NDArray[np.int64]
    scores: dict[int, FloatArray] = field(init=False)
    seconds: dict[str, float] = field(init=False)
    _next: int = field(default=0, init=False)
    _missing: int = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.masks), len(self.targets))
        self.scores = {kind: np.empty(shape, np.float32) for kind in self.estimator.kinds}
        self.seconds = {"blend": 0.0, "score": 0.0}
        self._missing = self.rows

    @property
    def rows(self) -> int:
        """How many rows the engine scores for this picture."""
        return len(self.masks) * len(self.estimator.kinds)

    @property
    def done(self) -> bool:
        """Whether every row has been scored."""
        return self._missing == 0

    def finish_row(self, kind: int, mask: int, probabilities: FloatArray) -> None:
        """Keep one scored row: (C,) float32."""
        self.scores[kind][mask] = probabilities[self.targets]
        self._missing -= 1


@dataclass(frozen=True)
class PackedBatch:
    """A batch and, row by row, whose it is: (task, mask index, row kind)."""

    batch: Batch
    owners: list[tuple[Task, int, int]]

    @property
    def tasks(self) -> list[Task]:
        """The tasks with a row in this batch, each once, in packing order."""
        return list(dict.fromkeys(task for task, _, _ in self.owners))

    def deliver(self, scores: Scores) -> list[Task]:
        """Give every row's scores to its task; returns the tasks whose last row this was."""
        rows = self.batch.rows
        for row, (task, mask, kind) in enumerate(self.owners):
            task.finish_row(kind, mask, scores.probabilities[row])
            task.seconds["blend"] += scores.blend_seconds / rows
            task.seconds["score"] += scores.forward_seconds / rows
        return [task for task in self.tasks if task.done]


@dataclass
class Scheduler:
    """Packs the rows of the tasks it holds; not safe to share between threads without a lock."""

    session: Session
    _tasks: deque[Task] = field(default_factory=deque, init=False)
    _pending: int = field(default=0, init=False)

    def add(self, task: Task) -> None:
        """Queue a task behind the others. One without masks is done already."""
        if not task.done:
            self._tasks.append(task)
            self._pending += task.rows - task._next

    def cancel(self, task: Task) -> None:
        """Drop what is left of a task."""
        if task in self._tasks:
            self._tasks.remove(task)
            self._pending -= task.rows - task._next

    @property
    def pending_rows(self) -> int:
        """Rows not yet packed."""
        return self._pending

    def run_batch(self) -> None:
        """Pack, blend and score one batch; as full as the waiting tasks allow."""
        packed = self.pack()
        if packed.batch.rows:
            packed.deliver(self.session.score(packed.batch))

    def run_all(self, tasks: Iterable[Task]) -> None:
        """Score every row of `tasks` and of those waiting before them."""
        for task in tasks:
            self.add(task)
            while self._pending >= self.session.batch_size:
                self.run_batch()
        while self._pending:
            self.run_batch()

    def pack(self) -> PackedBatch:
        """Take the next rows, at most a batch of them; they are then no longer pending."""
        batch = Batch()
        owners: list[tuple[Task, int, int]] = []
        while self._tasks and batch.rows < self.session.batch_size:
            task = self._tasks[0]
            batch.images.append(task.image)
            kinds = task.estimator.kinds
            while task._next < task.rows and batch.rows < self.session.batch_size:
                mask, place = divmod(task._next, len(kinds))
                rows = [SKIP] * 4
                # The kinds of one mask stay together, so that its noise is made once.
                for kind in kinds[place : place + self.session.batch_size - batch.rows]:
                    rows[kind] = batch.rows
                    owners.append((task, mask, kind))
                    batch.rows += 1
                    task._next += 1
                batch.masks.append(task.masks[mask])
                batch.jobs.append(
                    Job(
                        image=len(batch.images) - 1,
                        mask=len(batch.masks) - 1,
                        noise=mask,
                        seed=task.seed,
                        scale=task.noise_std if task.estimator.noisy else 0.0,
                        rows=(rows[0], rows[1], rows[2], rows[3]),
                    )
                )
            if task._next == task.rows:
                self._tasks.popleft()
        self._pending -= batch.rows
        return PackedBatch(batch, owners)
