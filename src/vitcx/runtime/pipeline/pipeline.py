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
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from vitcx.kernels.closing import Closing
from vitcx.runtime.engines.session import Scores, Session
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.pipeline.packing import PackedBatch, Scoring
from vitcx.runtime.pipeline.ticket import Ticket
from vitcx.runtime.pipeline.work_queue import Agenda, Encode, Entry, Place, Prepare, Score


class Stages(Protocol):
    """What the pipeline does to a picture. `work` is whatever `prepare` returns."""

    session: Session

    def prepare(self, request: Any) -> Any:
        """Read a picture. Runs on any thread, as do the others."""

    def encode(self, works: list[Any]) -> None:
        """Run the engine on these pictures and keep its answers in them."""

    def plan(self, work: Any) -> Scoring:
        """Masks and targets: the rows to score."""

    def finish(self, work: Any) -> Explanation:
        """The explanation, from the scores."""


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
        self._on_batch = on_batch
        self._changed = threading.Condition()  # its lock is held around every use of the agenda
        self._agenda = Agenda(
            stages.session,
            limit=limit,
            scorers=scorers,
            encode_size=encode_size,
            in_order=in_order,
        )
        self._closed = False
        self._engine_error: Exception | None = None
        self._calls: dict[object, float] = {}  # when the engine's running calls began
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
    def engine_seconds(self) -> float:
        """How long the longest of the engine's running calls has taken; 0 if none runs."""
        starts = list(self._calls.values())
        return time.monotonic() - min(starts) if starts else 0.0

    @property
    def alive(self) -> bool:
        """Whether it is open and each of its threads works."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """Pictures that nothing has been done to yet."""
        with self._changed:
            return sum(entry.place == Place.WAITING for entry in self._agenda.line)

    @property
    def pending_rows(self) -> int:
        """Rows that wait for a batch."""
        return self._agenda.packer.pending_rows

    def submit(self, request: Any) -> Ticket:
        """Queue a picture and return at once; it is held as it is until its turn comes."""
        ticket = Ticket()
        with self._changed:
            if self._closed:
                raise RuntimeError("the pipeline is closed")
            ticket.on_cancel = partial(self._drop, self._agenda.add(request, ticket))
            self._changed.notify()
        return ticket

    def end(self) -> None:
        """Say that no more is coming: what is left runs in a short batch."""
        with self._changed:
            self._agenda.ended = True
            self._changed.notify_all()

    def run(self) -> None:
        """Work in this thread until there is nothing left to do."""
        while True:
            with self._changed:
                job = self._next_job()
            if job is None:
                return
            self._do(job)

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
            entries = list(self._agenda.open.values())
        for entry in entries:
            entry.ticket.cancel()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            # A generator left halfway is closed by the garbage collector, on any thread.
            if thread is not threading.current_thread():
                thread.join()

    def _next_job(self) -> Prepare | Encode | Score | None:
        return None if self._closed else self._agenda.next_job()

    # ---- doing it; the lock is not held

    def _work(self) -> None:
        while True:
            with self._changed:
                while (job := self._next_job()) is None and not self._closed:
                    self._changed.wait()
            if job is None:
                return
            self._do(job)
            del job  # it holds a picture, and the next may be long in coming

    def _do(self, job: Prepare | Encode | Score) -> None:
        match job:
            case Prepare(entry):
                self._prepare(entry)
            case Encode(group):
                self._encode(group)
            case Score(packed):
                self._score(packed)

    @contextmanager
    def _engine_call(self) -> Iterator[None]:
        call = object()
        self._calls[call] = time.monotonic()
        try:
            yield
        finally:
            del self._calls[call]

    def _prepare(self, entry: Entry) -> None:
        try:
            work = self._stages.prepare(entry.request)
        except Exception as error:  # whatever it is, it is this picture's alone
            self._fail(entry, error)
            return
        with self._changed:
            entry.request = None
            entry.work = work
            entry.place = Place.PREPARED
            self._changed.notify_all()

    def _encode(self, group: list[Entry]) -> None:
        failure: Exception | None = None
        try:
            with self._engine_call():
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
            without_rows = self._agenda.encoded()
            self._changed.notify_all()
        for entry in without_rows:
            self._finish(entry)

    def _plan(self, entry: Entry) -> None:
        try:
            scoring = self._stages.plan(entry.work)
        except Exception as error:
            self._fail(entry, error)
            return
        with self._changed:
            entry.scoring = scoring
            entry.place = Place.PLANNED

    def _score(self, packed: PackedBatch) -> None:
        try:
            with self._engine_call():
                scores = self._stages.session.score_rows(packed.batch)
        except Exception as error:
            self._engine_error = error
            with self._changed:
                hit = self._agenda.lost(packed)
            for entry in hit:
                self._fail(entry, error, engine=True)
            return
        self._engine_error = None
        if self._on_batch is not None:
            self._on_batch(packed.batch.rows, scores)
        with self._changed:
            finished = self._agenda.scored(packed, scores)
            self._changed.notify_all()
        for entry in finished:
            self._finish(entry)

    def _finish(self, entry: Entry) -> None:
        try:
            result = self._stages.finish(entry.work)
        except Exception as error:
            self._fail(entry, error)
            return
        if self._settle(entry):
            entry.ticket.set_result(result)

    def _fail(self, entry: Entry, error: Exception, *, engine: bool = False) -> None:
        if self._settle(entry):
            entry.ticket.engine_failed = engine
            entry.ticket.set_exception(error)

    def _settle(self, entry: Entry) -> bool:
        """Let go of a picture; whether its ticket still wants an answer.

        The answer is given without the lock: it calls whoever waits for it.
        """
        with self._changed:
            settled, entry.settled = entry.settled, True
            self._release(entry)
        if settled:  # two batches of one picture can fail at a time
            return False
        entry.request = entry.work = entry.scoring = entry.ticket.on_cancel = None
        return entry.ticket.set_running_or_notify_cancel()

    def _drop(self, entry: Entry) -> None:
        with self._changed:
            self._release(entry)

    def _release(self, entry: Entry) -> None:
        self._agenda.release(entry)
        self._changed.notify_all()


def _wait(ticket: Ticket) -> Ticket:
    ticket.exception()
    return ticket
