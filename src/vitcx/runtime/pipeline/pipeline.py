"""From pictures to explanations, several at a time: one picture, a data set and a server.

A few threads share one queue of work under one lock. Each takes the most urgent thing that can be
done: score a full batch; else encode pictures that are prepared, and find their masks; else read
and prepare the next picture; else, if nothing more is on its way, score what rows are left. So the
engine is fed first, the processor's share of the work is done beside it, and only the last batch
of all is short.

Memory is bounded by `limit`, the number of pictures between their preparation and their result.

Two orders of work:

``in order`` (a data set)
    Rows are packed in the order of submission, and a batch is short only when every picture of the
    window of `limit` is in it or no more are to come. What shares a batch with what is then a
    function of the pictures alone, not of the clock: the same pictures give the same bits.
as they come (a server)
    A picture's rows are packed as soon as its masks are known, and a batch that no picture is about
    to fill runs at once. Clients take turns, and so do pictures of very many rows and others: see
    `turns`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from functools import partial

from vitcx.kernels.closing import Closing
from vitcx.kernels.errors import first_line
from vitcx.runtime.engines.session import Scores, check_process
from vitcx.runtime.errors import EngineError
from vitcx.runtime.pipeline.runner import Runner, Stages, without_frames
from vitcx.runtime.pipeline.ticket import Ticket
from vitcx.runtime.pipeline.work import Reached
from vitcx.runtime.pipeline.work_queue import Encode, Prepare, Score, WorkQueue
from vitcx.runtime.settings import Request

log = logging.getLogger("vitcx")


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
        self._changed = threading.Condition()  # its lock is held around every use of the queue
        self._queue = WorkQueue(
            stages.session,
            limit=limit,
            scorers=scorers,
            encode_size=encode_size,
            in_order=in_order,
        )
        self._process = os.getpid()
        self._closed = False
        self._failure: Exception | None = None  # of a thread that has died
        self._stages = stages
        self._runner = Runner(stages, self._queue, self._changed, on_batch)
        self._threads = [
            threading.Thread(target=self._work, name=f"vitcx-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def engine_error(self) -> Exception | None:
        """Why the engine's latest call failed; None if it did not."""
        return self._runner.engine_error

    @property
    def engine_seconds(self) -> float:
        """How long the longest of the engine's running calls has taken; 0 if none runs."""
        return self._runner.engine_seconds

    @property
    def alive(self) -> bool:
        """Whether it is open and each of its threads works."""
        if self._closed or self._failure is not None:
            return False
        return all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """Pictures that nothing has been done to yet."""
        with self._changed:
            return sum(work.reached == Reached.WAITING for work in self._queue.line)

    @property
    def pending_rows(self) -> int:
        """Rows that wait for a batch."""
        return self._queue.packer.pending_rows

    def submit(self, request: Request, client: str = "") -> Ticket:
        """Queue a picture and return at once; it is held as it is until its turn comes.

        Where a thread has died, the ticket has its error already.

        Parameters
        ----------
        client : who asks; where pictures are served as they come, clients take turns.

        Raises
        ------
        RuntimeError
            The pipeline is closed.
        EngineError
            It was opened in another process.
        """
        check_process(self._process)
        ticket = Ticket()
        least_rows = self._stages.least_rows(request)
        with self._changed:
            if self._closed:
                raise RuntimeError("the pipeline is closed")
            failure = self._failure
            if failure is None:
                work = self._queue.add(request, ticket, client, least_rows)
                ticket.on_cancel = partial(self._runner.drop, work)
                self._changed.notify()
        if failure is not None:
            ticket.engine_failed = ticket.claim()
            ticket.set_exception(failure)
        return ticket

    def end(self) -> None:
        """Say that no more is coming: what is left runs in a short batch."""
        with self._changed:
            self._queue.ended = True
            self._changed.notify_all()

    def run(self) -> None:
        """Work in this thread until there is nothing left to do."""
        try:
            while True:
                with self._changed:
                    action = self._next_action()
                if action is None:
                    return
                self._runner.do(action)
        except BaseException as error:
            self._stop(error)
            raise

    def stream(self, requests: Iterable[Request]) -> Iterator[Ticket]:
        """Submit requests no faster than `limit` allows; yields their done tickets in order.

        What `requests` raises is raised when the pictures before it are done.
        """
        tickets: deque[Ticket] = deque()
        source, failure = iter(requests), None
        while True:
            try:
                request = next(source)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            tickets.append(self.submit(request))
            del request  # the picture is the pipeline's
            if not self._threads:
                self.run()
            while tickets and (tickets[0].done() or len(tickets) >= self.limit):
                yield _wait(tickets.popleft())
        self.end()
        if not self._threads:
            self.run()
        while tickets:
            yield _wait(tickets.popleft())
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback has this frame

    def close(self) -> None:
        """Cancel what is not done and stop the threads. Twice does no harm."""
        if os.getpid() != self._process:
            return  # the threads are the other process's
        with self._changed:
            self._closed = True
            works = list(self._queue.open.values())
        for work in works:
            work.ticket.cancel()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            # A generator left halfway is closed by the garbage collector, on any thread.
            if thread is not threading.current_thread():
                thread.join()

    def _next_action(self) -> Prepare | Encode | Score | None:
        stopped = self._closed or self._failure is not None
        return None if stopped else self._queue.next_action()

    def _work(self) -> None:
        try:
            while (action := self._wait_for_action()) is not None:
                self._runner.do(action)
                del action  # it holds a picture, and the next may be long in coming
        except BaseException as error:  # no picture's fault, nor the engine's: see `_stop`
            log.error("the pipeline stops: %s", first_line(error), exc_info=error)
            self._stop(error)

    def _wait_for_action(self) -> Prepare | Encode | Score | None:
        """What to do next; None where nothing is ever to be done again."""
        with self._changed:
            while (action := self._next_action()) is None:
                if self._closed or self._failure is not None:
                    return None
                self._changed.wait()
            return action

    def _stop(self, error: BaseException) -> None:
        """A thread dies of what nobody expected: every ticket ends, with this error.

        What the thread had in hand is in a state that nobody knows, so no other goes on.
        """
        failure = without_frames(error)
        if not isinstance(failure, Exception):  # such as SystemExit, which is not the waiter's
            ended = EngineError(f"a thread of the pipeline has ended: {first_line(error)}")
            ended.__cause__ = failure
            failure = ended
        with self._changed:
            self._failure = self._failure or failure
            works = list(self._queue.unsettled.values())
            self._changed.notify_all()
        for work in works:
            self._runner.fail(work, failure, engine=True)


def _wait(ticket: Ticket) -> Ticket:
    wait([ticket])
    return ticket
