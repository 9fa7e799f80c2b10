"""Who is let in and for how long: between the HTTP routes and the pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from vitcx.runtime.engines.session import Scores
from vitcx.runtime.errors import BusyError, EngineError, NoAnswerError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.pictures.reading import EncodedPicture
from vitcx.runtime.pipeline.pipeline import Pipeline
from vitcx.runtime.pipeline.ticket import Ticket
from vitcx.runtime.settings import Request
from vitcx.serving.bodies import Bodies
from vitcx.serving.figures import Figures, timed
from vitcx.serving.limits import Limits, Refused
from vitcx.serving.pictures import Pictures, Stay

_T = TypeVar("_T")


class Admission:
    """Admits requests, and explains their pictures in one shared pipeline.

    Parameters
    ----------
    explainer : not closed here.
    limits : what is taken on.
    preset : of requests that name none; None for the default settings.

    Attributes
    ----------
    bodies : what is being received.
    figures : what is counted.
    """

    def __init__(self, explainer: Explainer, limits: Limits, preset: str | None = None) -> None:
        self.explainer, self.limits, self.preset = explainer, limits, preset
        self.closing = False
        self.bodies = Bodies(limits)
        self.figures = Figures()
        self._inside: Counter[str] = Counter()  # requests of each client
        self._pace = 1.0  # seconds from one answer to the next, smoothed
        self._last_answer = 0.0
        self.pipeline: Pipeline = explainer.open_pipeline(in_order=False, on_batch=self._note_batch)
        self._pictures = Pictures(limits.queue, self.pipeline.limit)
        watch = self.figures.watch
        watch("vitcx_queue_depth", "Requests accepted and not answered.", self._inside.total)
        watch(
            "vitcx_pending_rows",
            "Rows that wait for a batch.",
            lambda: self.pipeline.pending_rows,
        )
        watch(
            "vitcx_held_bytes",
            "Bytes of bodies that are coming or worked on.",
            lambda: self.bodies.held_bytes,
        )
        watch(
            "vitcx_large_pictures",
            "Requests whose decoded pictures of more than 4 megapixels are in memory.",
            lambda: self._pictures.large,
        )
        watch(
            "vitcx_engine_call_seconds",
            "How long the longest of the engine's running calls has taken.",
            lambda: self.pipeline.engine_seconds,
        )
        watch("vitcx_ready", "1 if the server can explain.", lambda: self.unready is None)

    def close(self) -> None:
        """Stop the threads; what is not answered is dropped."""
        self.closing = True
        self._pictures.close()
        self.pipeline.close()

    @property
    def unready(self) -> str | None:
        """Why no explanation can be made now; None if one can."""
        if self.closing:
            return "the server is stopping"
        if not self.pipeline.alive:
            return "a thread of the pipeline has died: start the server again"
        if self.pipeline.engine_seconds > self.limits.deadline:
            return f"the engine has worked on one batch for over {self.limits.deadline:g} s"
        if self.pipeline.engine_error is not None:
            return "the engine's latest call failed"
        return None

    @contextmanager
    def place(self, client: str) -> Iterator[Stay]:
        """A place in the bounded queue, for a request whose body is there.

        One place in eight is for clients that have none yet.

        Parameters
        ----------
        client : who asks, see `vitcx.serving.routes.client_of`.

        Raises
        ------
        Refused
            429 if there is no place, at once.
        """
        inside, queue = self._inside.total(), self.limits.queue
        if inside >= (queue - queue // 8 if self._inside[client] else queue):
            self.figures.note_reject("queue_full")
            wait = str(max(1, math.ceil(self._pace * inside)))
            raise Refused(
                429,
                f"{inside} requests are waiting already: try again in {wait} s",
                {"Retry-After": wait},
            )
        self._inside[client] += 1
        try:
            with self._pictures.stay(client) as stay:
                yield stay
        finally:
            self._inside[client] -= 1
            if not self._inside[client]:
                del self._inside[client]

    async def explain(
        self,
        requests: list[Request],
        stay: Stay,
        deadline: float,
        disconnected: Callable[[], Awaitable[None]],
    ) -> list[Explanation]:
        """Explanations of the pictures of one request; its rows are dropped if it ends early.

        Parameters
        ----------
        stay : of its `place`.
        deadline : on the monotonic clock.
        disconnected : returns when the client has gone.

        Raises
        ------
        Refused
            422 if the model has no answer for a picture, 499 (nobody hears it), 503 if the engine
            failed or a picture made room for others, 504 at the deadline.
        VitcxError
            What a picture's own explanation raises.
        """
        gone = asyncio.ensure_future(disconnected())
        tickets: list[Ticket] = []
        try:
            with timed(self.figures, "decode"):
                requests = [
                    await self._decoded(request, stay, gone, deadline) for request in requests
                ]
            start = time.monotonic()
            # Not all of a request's pictures at once: those of others have their turns between.
            share = max(2, self.pipeline.limit // 4)
            for i, request in enumerate(requests):
                if i >= share:
                    await self._until(_done(tickets[i - share]), gone, deadline)
                tickets.append(self.pipeline.submit(request, stay.client))
            del requests, request  # the pictures are the pipeline's
            for ticket in tickets:
                await self._until(_done(ticket), gone, deadline)
        finally:
            gone.cancel()
            for ticket in tickets:
                ticket.cancel()
        results = [self._result(ticket) for ticket in tickets]
        self._note_answer(start, results)
        return results

    async def _decoded(
        self, request: Request, stay: Stay, gone: asyncio.Future[None], deadline: float
    ) -> Request:
        """The request with its picture decoded, where it is a file."""
        if not isinstance(request.image, EncodedPicture):
            return request
        try:
            picture = self._pictures.decode(request.image, stay)
            return replace(request, image=await self._until(picture, gone, deadline))
        except BusyError as error:
            self.figures.note_reject("slow_picture")
            raise Refused(503, f"{error}: try again later", {"Retry-After": "1"}) from None
        except EngineError as error:  # no process to decode it
            self.figures.note_reject("engine")
            raise Refused(503, f"{error}: try again later, or tell the operator") from None

    async def _until(
        self, work: asyncio.Future[_T], gone: asyncio.Future[None], deadline: float
    ) -> _T:
        """What comes of some work, unless the client goes or the time is over before."""
        waited: set[asyncio.Future[Any]] = {work, gone}
        try:
            await asyncio.wait(
                waited,
                timeout=max(0.0, deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work.done():
                return work.result()
            work.cancel()
            if gone.done():
                self.figures.note_reject("client_gone")
                raise Refused(499, "the client has gone")
            self.figures.note_reject("deadline")
            raise Refused(504, f"not done within {self.limits.deadline:g} s")
        finally:
            del work, waited  # an error would refer to this frame, and this frame to the error

    def _result(self, ticket: Ticket) -> Explanation:
        """What a ticket that is done has come to."""
        error = ticket.exception()
        if error is None:
            return ticket.result()
        if ticket.engine_failed:
            self.figures.note_reject("engine")
            raise Refused(503, "the engine failed: try again later, or tell the operator")
        if isinstance(error, NoAnswerError):
            self.figures.note_reject("no_answer")
            raise Refused(422, str(error))
        raise error

    def _note_answer(self, start: float, results: list[Explanation]) -> None:
        now = time.monotonic()
        if self._last_answer:
            gap = min(now - self._last_answer, now - start)
            self._pace += 0.1 * (gap - self._pace)
        self._last_answer = now
        for result in results:
            self.figures.note_explanation(result.timings, now - start)

    def _note_batch(self, rows: int, scores: Scores) -> None:
        self.figures.note_batch(rows / self.explainer.session.batch_size)


def _done(ticket: Ticket) -> asyncio.Future[None]:
    """A future of the running loop, done when the ticket is, however it ended.

    It may be left alone: nothing complains of an answer that nobody waits for any more.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    def tell(ticket: Future[Explanation]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who waited
            loop.call_soon_threadsafe(settle)

    ticket.add_done_callback(tell)
    return done
