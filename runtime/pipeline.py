"""From pictures to explanations, several at a time: one picture, a data set and a server.

A few threads share one queue of work under one lock. Each takes the most urgent thing that can be
done: score a full batch; else encode pictures that are prepared, and find their masks; else read
and prepare the next picture; else, if nothing more is on its way, score what rows are left. So the
engine is fed first, the processor's share of the work is done beside it, and only the last batch
of a job is short.

Memory is bounded by `limit`, the number of pictures between their preparation and their result.

Two orders of work:

``in order`` (a data set)
    Rows are packed in the order of submission, and a batch is short only when every picture of the
    window of `limit` is in it or the job has ended. What shares a batch with what is then a
    function of the pictures alone, not of the clock: the same job gives the same bits.
as they come (a server)
    A picture's rows are packed as soon as its masks are known, and a batch that no picture is about
    to fill runs at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Protocol

from vitcx.kernels.closing import Closing
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.scheduler import PackedBatch, Scheduler, Task
from vitcx.runtime.session import Scores, Session


class Stages(Protocol):
    """What the pipeline does to a picture. `work` is whatever `prepare` returns."""

    session: Session

    def prepare(self, request: Any) -> Any:
        """Read a picture. Runs on any thread, as do the others."""

    def encode(self, works: list[Any]) -> None:
        """Run the engine on these pictures and keep its answers in them."""

    def plan(self, work: Any) -> Task:
        """Masks and targets: the rows to score."""

    def finish(self, work: Any) -> Explanation:
        """The explanation, from the scores."""


class Ticket(Future[Explanation]):
    """A picture on its way. `cancel` drops its rows.

    Attributes
    ----------
    engine_failed : whether the error is the engine's, and so no fault of the picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.engine_failed = False
        self._on_cancel: Callable[[], None] | None = None

    def cancel(self) -> bool:
        """Drop the picture's rows. False if it is done already."""
        if not super().cancel():
            return False
        # Taken out here and on completion: it refers back to the ticket, and such a ring would
        # keep the picture until the garbage collector's next round.
        drop, self._on_cancel = self._on_cancel, None
        if drop is not None:
            drop()
        return True


class _Place(IntEnum):
    """How far a picture has come."""

    WAITING, PREPARING, PREPARED, ENCODING, PLANNED = range(5)


@dataclass(eq=False)
class _Entry:
    request: Any
    index: int
    ticket: Ticket
    place: _Place = _Place.WAITING
    work: Any = None
    task: Task | None = None
    held: bool = False  # counted in `Pipeline._held`
    closed: bool = False  # done or cancelled: whoever has it at hand lets it go
    settled: bool = False


class Pipeline(Closing):
    """Explains pictures with a few threads; a context manager. Safe to use from several threads.

    Parameters
    ----------
    stages : what is done to a picture.
    limit : the most pictures held at a time, at least 1.
    workers : threads; 0 makes none, and `run` works in the caller's.
    scorers : the most batches that are with the engine at a time.
    encode_size : the most pictures of one encoding.
    in_order : see the head of this module.
    on_batch : told of every batch: how many rows, and how long they took. Must be quick.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        limit: int,
        workers: int,
        scorers: int = 1,
        encode_size: int = 1,
        in_order: bool = True,
        on_batch: Callable[[int, Scores], None] | None = None,
    ) -> None:
        self.limit = limit
        self._stages = stages
        self._scorers = scorers
        self._encode_size = min(encode_size, limit)
        self._in_order = in_order
        self._on_batch = on_batch
        self._scheduler = Scheduler(stages.session)
        self._changed = threading.Condition()
        # Every picture whose rows are not all scored, by its index, in order of submission.
        self._open: dict[int, _Entry] = {}
        # Of those, the ones whose rows the scheduler does not have yet.
        self._line: deque[_Entry] = deque()
        self._by_task: dict[Task, _Entry] = {}
        self._submitted = 0
        self._held = 0  # pictures in memory: from preparation to result
        self._scoring = 0
        self._encoding = 0
        self._ended = False
        self._closed = False
        self._engine_error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"vitcx-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def engine_error(self) -> Exception | None:
        """Why the engine's latest call failed; None if it did not."""
        return self._engine_error

    @property
    def waiting(self) -> int:
        """Pictures that nothing has been done to yet."""
        with self._changed:
            return sum(entry.place == _Place.WAITING for entry in self._line)

    @property
    def pending_rows(self) -> int:
        """Rows that wait for a batch."""
        return self._scheduler.pending_rows

    def submit(self, request: Any) -> Ticket:
        """Queue a picture and return at once; it is held as it is until its turn comes."""
        ticket = Ticket()
        with self._changed:
            if self._closed:
                raise RuntimeError("the pipeline is closed")
            entry = _Entry(request, self._submitted, ticket)
            self._submitted += 1
            self._open[entry.index] = entry
            self._line.append(entry)
            ticket._on_cancel = partial(self._drop, entry)
            self._changed.notify()
        return ticket

    def end(self) -> None:
        """Say that no more is coming: what is left runs in a short batch."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def run(self) -> None:
        """Work in this thread until there is nothing left to do."""
        while True:
            with self._changed:
                job = self._next_job()
            if job is None:
                return
            job()

    def stream(self, requests: Iterable[Any]) -> Iterator[Ticket]:
        """Submit requests no faster than `limit` allows; yields their done tickets in order."""
        tickets: deque[Ticket] = deque()
        for request in requests:
            tickets.append(self.submit(request))
            if not self._threads:
                self.run()
            while tickets and (tickets[0].done() or len(tickets) >= self.limit):
                yield _wait(tickets.popleft())
        self.end()
        if not self._threads:
            self.run()
        while tickets:
            yield _wait(tickets.popleft())

    def close(self) -> None:
        """Cancel what is not done and stop the threads. Twice does no harm."""
        with self._changed:
            self._closed = True
            entries = list(self._open.values())
        for entry in entries:
            entry.ticket.cancel()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            # A generator left halfway is closed by the garbage collector, on any thread.
            if thread is not threading.current_thread():
                thread.join()

    # ---- choosing what to do; the lock is held

    def _next_job(self) -> Callable[[], None] | None:
        if self._closed:
            return None
        free = self._scoring < self._scorers
        if free and self._scheduler.pending_rows >= self._stages.session.batch_size:
            return self._take_batch()
        stalled = self._stalled()
        if group := self._take_group(stalled):
            return partial(self._encode, group)
        if self._held < self.limit:
            for entry in self._line:
                if entry.place == _Place.WAITING:
                    entry.place = _Place.PREPARING
                    entry.held = True
                    self._held += 1
                    return partial(self._prepare, entry)
        if free and stalled and self._scheduler.pending_rows:
            return self._take_batch()
        return None

    def _take_batch(self) -> Callable[[], None]:
        self._scoring += 1
        return partial(self._score, self._scheduler.pack())

    def _stalled(self) -> bool:
        """Whether no full batch and no full encoding can come of waiting."""
        if not self._in_order:
            return self._encoding == 0
        if self._scoring or any(
            entry.place != _Place.PREPARED for entry in self._line
        ):  # what is on its way may fill the batch
            return False
        first = next(iter(self._open), self._submitted)
        return self._ended or self._submitted - first >= self.limit

    def _take_group(self, stalled: bool) -> list[_Entry]:
        """The next pictures to encode together, or none."""
        group: list[_Entry] = []
        for entry in self._line:
            if entry.place == _Place.PREPARED:
                group.append(entry)
            elif self._in_order and entry.place < _Place.PREPARED:
                break  # its turn comes first
            if len(group) == self._encode_size:
                break
        if self._in_order and len(group) < self._encode_size and not stalled:
            return []
        if group:
            self._encoding += 1
        for entry in group:
            entry.place = _Place.ENCODING
        return group

    # ---- doing it; the lock is not held

    def _work(self) -> None:
        while True:
            with self._changed:
                while (job := self._next_job()) is None and not self._closed:
                    self._changed.wait()
            if job is None:
                return
            job()
            del job  # it holds a picture, and the next may be long in coming

    def _prepare(self, entry: _Entry) -> None:
        try:
            work = self._stages.prepare(entry.request)
        except Exception as error:  # whatever it is, it is this picture's alone
            self._fail(entry, error)
            return
        with self._changed:
            entry.request = None
            entry.work = work
            entry.place = _Place.PREPARED
            self._changed.notify_all()

    def _encode(self, group: list[_Entry]) -> None:
        failure: Exception | None = None
        try:
            self._stages.encode([entry.work for entry in group])
        except Exception as error:
            failure = error
        self._engine_error = failure
        for entry in group:
            if failure is not None:
                self._fail(entry, failure, engine=True)
            elif not entry.closed:
                self._plan(entry)
        with self._changed:
            self._encoding -= 1
            without_rows = self._hand_over()
            self._changed.notify_all()
        for entry in without_rows:
            self._finish(entry)

    def _plan(self, entry: _Entry) -> None:
        try:
            task = self._stages.plan(entry.work)
        except Exception as error:
            self._fail(entry, error)
            return
        with self._changed:
            entry.task = task
            entry.place = _Place.PLANNED

    def _hand_over(self) -> list[_Entry]:
        """Give planned rows to the scheduler; returns the pictures that have none.

        The lock is held.
        """
        without_rows: list[_Entry] = []
        kept: deque[_Entry] = deque()
        while self._line:
            entry = self._line.popleft()
            if entry.task is None:
                kept.append(entry)
                if self._in_order:
                    break
            elif entry.task.done:
                del self._open[entry.index]
                without_rows.append(entry)
            else:
                self._by_task[entry.task] = entry
                self._scheduler.add(entry.task)
        self._line = kept + self._line
        return without_rows

    def _score(self, packed: PackedBatch) -> None:
        try:
            scores = self._stages.session.score(packed.batch)
        except Exception as error:
            self._engine_error = error
            with self._changed:
                self._scoring -= 1
                hit = [self._by_task[task] for task in packed.tasks if task in self._by_task]
            for entry in hit:
                self._fail(entry, error, engine=True)
            return
        self._engine_error = None
        if self._on_batch is not None:
            self._on_batch(packed.batch.rows, scores)
        with self._changed:
            self._scoring -= 1
            # A cancelled picture's rows are scored if they were packed already, and belong to none.
            finished = [
                self._by_task.pop(task) for task in packed.deliver(scores) if task in self._by_task
            ]
            for entry in finished:
                del self._open[entry.index]
            self._changed.notify_all()
        for entry in finished:
            self._finish(entry)

    def _finish(self, entry: _Entry) -> None:
        try:
            result = self._stages.finish(entry.work)
        except Exception as error:
            self._fail(entry, error)
            return
        if self._settle(entry):
            entry.ticket.set_result(result)

    def _fail(self, entry: _Entry, error: Exception, *, engine: bool = False) -> None:
        if self._settle(entry):
            entry.ticket.engine_failed = engine
            entry.ticket.set_exception(error)

    def _settle(self, entry: _Entry) -> bool:
        """Let go of a picture; whether its ticket still wants an answer.

        The answer is given without the lock: it calls whoever waits for it.
        """
        with self._changed:
            settled, entry.settled = entry.settled, True
            self._release(entry)
        if settled:  # two batches of one picture can fail at a time
            return False
        entry.request = entry.work = entry.task = entry.ticket._on_cancel = None
        return entry.ticket.set_running_or_notify_cancel()

    def _drop(self, entry: _Entry) -> None:
        with self._changed:
            self._release(entry)

    def _release(self, entry: _Entry) -> None:
        """Take a picture out of every queue and give its place free; the lock is held."""
        entry.closed = True
        self._open.pop(entry.index, None)
        if entry in self._line:
            self._line.remove(entry)
        if entry.task is not None:
            self._scheduler.cancel(entry.task)
            self._by_task.pop(entry.task, None)
        if entry.held:
            entry.held = False
            self._held -= 1
        self._changed.notify_all()


def _wait(ticket: Ticket) -> Ticket:
    ticket.exception()
    return ticket
