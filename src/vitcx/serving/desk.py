"""Who is let in, for how long, and what is counted: between the HTTP routes and the pipeline."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vitcx.runtime.engines.session import Scores
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.pipeline.pipeline import Pipeline
from vitcx.runtime.settings import Request

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes
    ----------
    queue : requests accepted and not answered; over it, 429.
    deadline : seconds from the first byte of a request to its answer; over it, 504.
    body_bytes, pixels : of one request; over it, 413 and 400.
    targets : classes explained in one request.
    """

    queue: int = 64
    deadline: float = 60.0
    body_bytes: int = 32 << 20
    pixels: int = 40_000_000
    targets: int = 100


class Refused(Exception):
    """A request that is answered with an error: status, one sentence, headers."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


class Desk:
    """Admits requests, explains their pictures in one shared pipeline, and keeps the figures.

    Parameters
    ----------
    explainer : not closed here.
    limits : what is taken on.
    """

    def __init__(self, explainer: Explainer, limits: Limits) -> None:
        self.explainer, self.limits = explainer, limits
        self.closing = False
        self._inside = 0
        self._pace = 1.0  # seconds from one answer to the next, smoothed
        self._last_answer = 0.0
        self.registry = CollectorRegistry()
        self._stage_seconds = Histogram(
            "vitcx_stage_seconds",
            "Seconds a picture spent in a stage (total: as the client sees it, without transfer).",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._fill = Histogram(
            "vitcx_batch_fill",
            "Rows of a mask batch over its size.",
            buckets=(0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.999, 1.0),
            registry=self.registry,
        )
        self._rejects = Counter(
            "vitcx_rejects", "Requests refused, by reason.", ["reason"], registry=self.registry
        )
        self._answers = Counter("vitcx_explanations", "Explanations made.", registry=self.registry)
        Gauge(
            "vitcx_queue_depth", "Requests accepted and not answered.", registry=self.registry
        ).set_function(lambda: self._inside)
        Gauge(
            "vitcx_pending_rows", "Rows that wait for a batch.", registry=self.registry
        ).set_function(lambda: self.pipeline.pending_rows)
        self.pipeline: Pipeline = explainer.open_pipeline(in_order=False, on_batch=self._note_batch)

    def close(self) -> None:
        """Stop the threads; what is not answered is dropped."""
        self.closing = True
        self.pipeline.close()

    @property
    def ready(self) -> bool:
        """Whether the engine's latest call worked and the server is not stopping."""
        return not self.closing and self.pipeline.engine_error is None

    def metrics(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def note_reject(self, reason: str) -> None:
        self._rejects.labels(reason).inc()

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[float]:
        """Take a place in the bounded queue; gives the time at which the request must be done.

        Raises
        ------
        Refused
            429 if there is no place, at once.
        """
        if self._inside >= self.limits.queue:
            self.note_reject("queue_full")
            wait = str(max(1, math.ceil(self._pace * self._inside)))
            raise Refused(
                429,
                f"{self._inside} requests are waiting already: try again in {wait} s",
                {"Retry-After": wait},
            )
        self._inside += 1
        try:
            yield time.monotonic() + self.limits.deadline
        finally:
            self._inside -= 1

    async def explain(
        self,
        requests: list[Request],
        deadline: float,
        disconnected: Callable[[], Awaitable[None]],
    ) -> list[Explanation]:
        """Explanations of the pictures of one request; its rows are dropped if it ends early.

        Parameters
        ----------
        deadline : on the monotonic clock.
        disconnected : returns when the client has gone.

        Raises
        ------
        Refused
            499 (nobody hears it), 503 if the engine failed, 504 at the deadline.
        VitcxError
            What a picture's own explanation raises.
        """
        start = time.monotonic()
        tickets = [self.pipeline.submit(request) for request in requests]
        answers = asyncio.gather(
            *(asyncio.wrap_future(ticket) for ticket in tickets), return_exceptions=True
        )
        gone = asyncio.ensure_future(disconnected())
        waited: set[asyncio.Future[Any]] = {answers, gone}
        try:
            await asyncio.wait(
                waited,
                timeout=max(0.0, deadline - start),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not answers.done():
                if gone.done():
                    self.note_reject("client_gone")
                    raise Refused(499, "the client has gone")
                self.note_reject("deadline")
                raise Refused(504, f"not done within {self.limits.deadline:g} s")
        finally:
            gone.cancel()
            for ticket in tickets:
                ticket.cancel()
            answers.cancel()
        results: list[Explanation] = []
        for ticket in tickets:
            error = ticket.exception()
            if error is None:
                results.append(ticket.result())
            elif ticket.engine_failed:
                self.note_reject("engine")
                raise Refused(503, "the engine failed: try again later, or tell the operator")
            else:
                raise error
        self._note_answer(start, results)
        return results

    def _note_answer(self, start: float, results: list[Explanation]) -> None:
        now = time.monotonic()
        if self._last_answer:
            gap = min(now - self._last_answer, now - start)
            self._pace += 0.1 * (gap - self._pace)
        self._last_answer = now
        for result in results:
            self._answers.inc()
            for stage, seconds in result.timings.items():
                if stage != "total":
                    self._stage_seconds.labels(stage).observe(seconds)
        self._stage_seconds.labels("total").observe(now - start)

    def _note_batch(self, rows: int, scores: Scores) -> None:
        self._fill.observe(rows / self.explainer.session.batch_size)
