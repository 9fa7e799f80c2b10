"""The server's figures, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FILL = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.999, 1.0)


class Figures:
    """Counters and histograms of one server.

    Attributes
    ----------
    registry : holds them.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("vitcx_requests", "Requests answered, by status.", "status")
        self._stage_seconds = Histogram(
            "vitcx_stage_seconds",
            "Seconds of a picture in a stage: read, decode (its turn awaited), queue (waiting for "
            "its turns), preprocess, encode, masks, blend, score, aggregation, draw; total is from "
            "submission to result.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "vitcx_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._fill = Histogram(
            "vitcx_batch_fill",
            "Rows of a mask batch over its size.",
            buckets=_FILL,
            registry=self.registry,
        )
        self._rejects = self._counter("vitcx_rejects", "Requests refused, by reason.", "reason")
        self._cut = self._counter(
            "vitcx_connections_cut", "Connections cut by the server, by reason.", "reason"
        )
        self._answers = Counter("vitcx_explanations", "Explanations made.", registry=self.registry)

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(name, text, [label], registry=self.registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is asked for whenever the figures are."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)

    def note_request(self, status: int, seconds: float) -> None:
        """A request has its answer."""
        self._requests.labels(str(status)).inc()
        self._request_seconds.observe(seconds)

    def note_reject(self, reason: str) -> None:
        """A request was refused."""
        self._rejects.labels(reason).inc()

    def note_cut(self, reason: str) -> None:
        """A connection was cut."""
        self._cut.labels(reason).inc()

    def note_stage(self, stage: str, seconds: float) -> None:
        """A picture has passed a stage."""
        self._stage_seconds.labels(stage).observe(seconds)

    def note_explanation(self, timings: Mapping[str, float], seconds: float) -> None:
        """An explanation was made, `seconds` after its picture was submitted."""
        self._answers.inc()
        worked = 0.0
        for stage, spent in timings.items():
            if stage != "total":
                worked += spent
                self.note_stage(stage, spent)
        self.note_stage("queue", max(0.0, seconds - worked))
        self.note_stage("total", seconds)

    def note_batch(self, share: float) -> None:
        """A batch was scored; `share` of it held rows."""
        self._fill.observe(share)


@contextmanager
def timed(figures: Figures, stage: str) -> Iterator[None]:
    """Note how long a stage takes, if it ends well."""
    start = time.monotonic()
    yield
    figures.note_stage(stage, time.monotonic() - start)
