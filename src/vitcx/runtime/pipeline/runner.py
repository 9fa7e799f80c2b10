"""Doing what the queue says: preparing, encoding and scoring, and telling those who wait."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from vitcx.runtime.engines.session import Scores, Session
from vitcx.runtime.errors import EngineError, VitcxError
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.pipeline.packing import PackedBatch
from vitcx.runtime.pipeline.work import Reached, Work
from vitcx.runtime.pipeline.work_queue import Encode, Prepare, Score, WorkQueue
from vitcx.runtime.settings import Request

_E = TypeVar("_E", bound=BaseException)


class Stages(Protocol):
    """What the pipeline does to a picture, step by step. Each may run on any thread."""

    session: Session

    def least_rows(self, request: Request) -> int:
        """Rows that a picture has at least, told before anything is done to it."""

    def prepare(self, work: Work) -> None:
        """Read the picture."""

    def encode(self, works: list[Work]) -> None:
        """Run the engine on these pictures and keep its answers in them."""

    def choose_masks(self, work: Work) -> None:
        """Masks and targets: the rows to score."""

    def finish(self, work: Work) -> Explanation:
        """The explanation, from the scores."""


class Runner:
    """Does one action after the other, on any number of threads.

    Parameters
    ----------
    stages : what is done to a picture.
    queue : what is to be done; used with the lock held.
    changed : the lock, told of every change.
    on_batch : see `Pipeline`.

    Attributes
    ----------
    engine_error : why the engine's latest call failed; None if it did not.
    """

    def __init__(
        self,
        stages: Stages,
        queue: WorkQueue,
        changed: threading.Condition,
        on_batch: Callable[[int, Scores], None] | None,
    ) -> None:
        self.engine_error: Exception | None = None
        self._stages = stages
        self._queue = queue
        self._changed = changed
        self._on_batch = on_batch
        self._calls: dict[object, float] = {}  # when the engine's running calls began

    @property
    def engine_seconds(self) -> float:
        """How long the longest of the engine's running calls has taken; 0 if none runs."""
        starts = list(self._calls.values())
        return time.monotonic() - min(starts) if starts else 0.0

    def do(self, action: Prepare | Encode | Score) -> None:
        """Do it; the lock is not held. What a picture or the engine raises ends in tickets.

        Raises
        ------
        BaseException
            What nobody expected, such as an error of `on_batch`. Tickets may be left without an
            answer then.
        """
        match action:
            case Prepare(work):
                self._prepare(work)
            case Encode(group):
                self._encode(group)
            case Score(packed):
                self._score(packed)

    def fail(self, work: Work, error: Exception, *, engine: bool = False) -> None:
        """End a picture's ticket with an error, if it wants an answer; `engine`: of the engine."""
        if self._settle(work):
            work.ticket.engine_failed = engine
            work.ticket.set_exception(error)

    def drop(self, work: Work) -> None:
        """Take a picture that nobody wants out of the queue."""
        with self._changed:
            self._queue.release(work)
            self._changed.notify_all()

    @contextmanager
    def _engine_call(self) -> Iterator[None]:
        call = object()
        self._calls[call] = time.monotonic()
        try:
            yield
        finally:
            del self._calls[call]

    def _prepare(self, work: Work) -> None:
        try:
            self._stages.prepare(work)
        except Exception as error:
            # This picture's alone; but for a device, or a decoder that cannot be started.
            self.fail(work, without_frames(error), engine=isinstance(error, EngineError))
            return
        with self._changed:
            work.reached = Reached.PREPARED
            self._changed.notify_all()

    def _encode(self, group: list[Work]) -> None:
        failure: Exception | None = None
        try:
            with self._engine_call():
                self._stages.encode(group)
        except Exception as error:
            failure = without_frames(error)
        self.engine_error = failure
        for work in group:
            if failure is not None:
                self.fail(work, failure, engine=True)
            elif not work.closed:
                self._choose_masks(work)
        with self._changed:
            without_rows = self._queue.encoded()
            self._changed.notify_all()
        for work in without_rows:
            self._finish(work)

    def _choose_masks(self, work: Work) -> None:
        try:
            self._stages.choose_masks(work)
        except Exception as error:
            self.fail(work, without_frames(error))
            return
        with self._changed:
            work.reached = Reached.READY

    def _score(self, packed: PackedBatch) -> None:
        try:
            with self._engine_call():
                scores = self._stages.session.score_rows(packed.batch)
        except Exception as error:
            self._lose(packed, without_frames(error))
            return
        if self._on_batch is not None:
            self._on_batch(packed.batch.rows, scores)
        try:
            with self._changed:
                finished = self._queue.scored(packed, scores)
                self._changed.notify_all()
        except Exception as error:
            self._lose(packed, without_frames(error))
            return
        self.engine_error = None
        for work in finished:
            self._finish(work)

    def _lose(self, packed: PackedBatch, error: Exception) -> None:
        """A batch has no scores, or none that fit: the pictures in it fail."""
        self.engine_error = error
        with self._changed:
            hit = self._queue.lost(packed)
        for work in hit:
            self.fail(work, error, engine=True)

    def _finish(self, work: Work) -> None:
        try:
            result = self._stages.finish(work)
        except Exception as error:
            self.fail(work, without_frames(error))
            return
        if self._settle(work):
            work.ticket.set_result(result)

    def _settle(self, work: Work) -> bool:
        """Let go of a picture; whether its ticket still wants an answer.

        The answer is given without the lock: it calls whoever waits for it.
        """
        self.drop(work)
        work.let_go()
        work.ticket.on_cancel = None
        return work.ticket.claim()


def without_frames(error: _E) -> _E:
    """The error, with nothing of the picture in its traceback, nor in those of its causes.

    A ticket keeps its error, the error its traceback, and that the picture in every frame, until
    the garbage collector finds the ring. Of an error that vitcx raises on purpose the message says
    it all; of others the lines are kept, and the frames emptied.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        if isinstance(error, VitcxError):
            one.__traceback__ = None
        waiting += [one.__cause__, one.__context__]
    return error
