"""Clients that are silent, slow or many, beside an honest one."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import vitcx
from tests.serving.running import (
    TIMEOUT,
    comes,
    connect,
    figure,
    head,
    png,
    serving,
    serving_here,
    until_closed,
)
from tests.tiny_bundle import SIZE
from vitcx.serving.connections import Connections
from vitcx.serving.limits import Limits

CHUNKED = "Transfer-Encoding: chunked"
PICTURE = "Content-Type: image/png"


@pytest.fixture(scope="module")
def explainer(bundle: str) -> Iterator[Any]:
    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        yield explainer


def is_served(client: Any) -> bool:
    """Whether an honest client is, on a connection of its own and on the one it has."""
    with connect(client) as own:
        own.sendall(head("/healthz", "Connection: close", method="GET"))
        probed = until_closed(own).startswith(b"HTTP/1.1 200 ")
    return probed and client.post("v1/explain", files={"image": png()}).status_code == 200


def cut(client: Any, reason: str) -> float:
    return figure(client, f'vitcx_connections_cut_total{{reason="{reason}"}}')


def test_silent_connections_keep_nobody_out_and_are_closed(explainer: Any) -> None:
    limits = Limits(connections=10, head_seconds=1)
    with serving_here(explainer, limits) as client, contextlib.ExitStack() as opened:
        silent = [opened.enter_context(connect(client)) for _ in range(40)]
        assert is_served(client)
        assert figure(client, "vitcx_connections") <= 10
        assert cut(client, "connections_full") >= 30
        for connection in silent:
            assert until_closed(connection) == b""
        assert comes(lambda: figure(client, "vitcx_connections") <= 2)


def test_connections_never_take_the_last_descriptor(bundle: str) -> None:
    """asyncio writes a traceback for each that it cannot accept, without end."""
    resource = pytest.importorskip("resource", reason="no limit of descriptors here")
    if (
        not hasattr(resource, "prlimit")
        or 0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2000
    ):
        pytest.skip("limits of descriptors cannot be set here as the test needs them")
    with serving(bundle) as (process, client), contextlib.ExitStack() as opened:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (1024, 1024))
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, before[1]))
        try:
            for _ in range(1200):
                opened.enter_context(connect(client))
            assert is_served(client)
        finally:
            opened.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        process.terminate()
        said = process.stdout.read()
    assert "too many open files" not in said.lower()


def test_a_head_that_comes_byte_by_byte_is_cut(explainer: Any) -> None:
    with (
        serving_here(explainer, Limits(head_seconds=0.5)) as client,
        connect(client) as slow,
    ):
        with contextlib.suppress(ConnectionError):
            for byte in head("/v1/explain", "X: " + "y" * 500):
                slow.sendall(bytes([byte]))
                time.sleep(0.01)
        assert until_closed(slow) == b""
        assert cut(client, "head_slow") == 1
        assert is_served(client)


def test_a_head_without_end_is_cut(explainer: Any) -> None:
    with serving_here(explainer, Limits()) as client, connect(client) as wordy:
        with contextlib.suppress(ConnectionError):
            wordy.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (1 << 20))
        assert until_closed(wordy) == b""
        assert cut(client, "head_large") == 1


@pytest.mark.parametrize("path", ["/v1/explain", "/v2/models/tiny/infer"])
def test_a_body_that_comes_byte_by_byte_is_told_and_takes_no_place(
    explainer: Any, path: str
) -> None:
    limits = Limits(queue=1, stall_seconds=0.5, least_rate=1000)
    with serving_here(explainer, limits) as client, contextlib.ExitStack() as opened:
        slow = [opened.enter_context(connect(client)) for _ in range(5)]
        for connection in slow:
            connection.sendall(head(path, PICTURE, "Content-Length: 1000") + b"x")
        assert is_served(client), "they have no place in the queue of one"
        for connection in slow:
            got = until_closed(connection)
            assert got.startswith(b"HTTP/1.1 408 ")
            assert b"connection: close" in got.lower()
            assert b"less than 1000 bytes a second" in got


@pytest.mark.parametrize("path", ["/v1/explain", "/healthz"])
def test_chunks_of_a_byte_are_cut_before_they_cost_much(explainer: Any, path: str) -> None:
    with serving_here(explainer, Limits()) as client, connect(client) as petty:
        with contextlib.suppress(ConnectionError):
            petty.sendall(head(path, PICTURE, CHUNKED) + b"1\r\nx\r\n" * 600_000 + b"0\r\n\r\n")
        until_closed(petty)
        assert is_served(client)
        if path == "/v1/explain":
            assert cut(client, "chunks_small") == 1


def test_honest_chunks_are_read(explainer: Any) -> None:
    picture = png(0, (600, 600))

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(picture), 500):
            yield picture[start : start + 500]

    with serving_here(explainer, Limits()) as client:
        answer = client.post("v1/explain", content=pieces(), headers={"Content-Type": "image/png"})
        assert answer.status_code == 200


@functools.lru_cache
def large_request() -> bytes:
    """A request whose answer is a few MB."""
    shape = [51, 3, SIZE, SIZE]
    pixels = np.random.default_rng(0).standard_normal(np.prod(shape)).round(3).tolist()
    tensors = [
        {"name": "images", "datatype": "FP32", "shape": shape, "data": pixels},
        {"name": "targets", "datatype": "INT64", "shape": [5], "data": [0, 1, 2, 3, 4]},
    ]
    outputs = {"inputs": tensors, "outputs": [{"name": "saliency"}]}
    body = json.dumps(outputs).encode()
    return head("/v2/models/tiny/infer", f"Content-Length: {len(body)}") + body


@contextlib.contextmanager
def reading_nothing(client: Any) -> Iterator[socket.socket]:
    """A connection that has asked for much and takes the first byte of it."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(TIMEOUT)
        connection.connect((client.base_url.host, client.base_url.port))
        connection.sendall(large_request())
        assert connection.recv(1) == b"H"
        yield connection


def test_an_answer_that_nobody_reads_is_dropped(explainer: Any) -> None:
    limits = Limits(queue=1, stall_seconds=0.6, least_rate=1 << 20)
    with serving_here(explainer, limits) as client, contextlib.ExitStack() as opened:
        for _ in range(3):
            opened.enter_context(reading_nothing(client))
        assert is_served(client)
        assert comes(lambda: cut(client, "answer_unread") == 3)


def test_answers_that_nobody_reads_are_bounded_together(explainer: Any) -> None:
    limits = Limits(unread_bytes=1)
    with serving_here(explainer, limits) as client, reading_nothing(client):
        assert comes(lambda: cut(client, "answers_full") == 1)
        assert is_served(client)


def test_the_body_that_has_taken_longest_makes_room(explainer: Any) -> None:
    with (
        serving_here(explainer, Limits(held_bytes=100_000)) as client,
        connect(client) as slow,
    ):
        lines = (PICTURE, "Content-Length: 99999")
        slow.sendall(head("/v1/explain", *lines) + b"x" * 99_990)
        assert comes(lambda: figure(client, "vitcx_held_bytes") >= 99_990)
        assert is_served(client)
        got = until_closed(slow)
        assert got.startswith(b"HTTP/1.1 503 ")
        assert b"no room for the body" in got
        assert comes(lambda: figure(client, "vitcx_held_bytes") == 0)
        too_much = client.post(
            "v1/explain", content=b"x" * 200_000, headers={"Content-Type": "image/png"}
        )
        assert too_much.status_code == 503


def test_a_connection_is_usable_after_every_error(explainer: Any) -> None:
    """31 of 40 next requests were lost after a 500."""
    bad = [
        ("v1/explain", b"{", {"Content-Type": "application/json"}),
        ("v1/explain", b"x" * 300_000, {"Content-Type": "text/plain"}),
        ("v1/explain", b"x" * 300_000, {"Content-Type": "image/png", "Accept": "text/csv"}),
        ("v1/explain", b"x" * 300_000, {"Content-Type": "image/png", "Host": "evil.example"}),
        ("v2/models/other/infer", b"x" * 300_000, {}),
        ("nowhere", b"x" * 300_000, {}),
        ("healthz", b"x" * 300_000, {}),
        ("v1/explain", b"x" * 900_000, {"Content-Type": "image/png"}),
    ]
    with serving_here(explainer, Limits(body_bytes=800_000)) as client:
        for path, body, headers in bad:
            answer = client.post(path, content=body, headers=headers)
            assert 400 <= answer.status_code < 500
            assert "error" in answer.json()
            assert "close" not in answer.headers.get("Connection", "")
            assert client.get("healthz").status_code == 200
        assert figure(client, "vitcx_connections") == 1, "it was the same one all the time"


def test_two_requests_in_one_packet_are_both_answered(explainer: Any) -> None:
    bad = b'{"image":"x","\\ud800":1}'
    first = head("/v1/explain", "Content-Type: application/json", f"Content-Length: {len(bad)}")
    second = head("/healthz", "Connection: close", method="GET")
    with serving_here(explainer, Limits()) as client, connect(client) as both:
        both.sendall(first + bad + second)
        got = until_closed(both)
    assert [got.count(f"HTTP/1.1 {code} ".encode()) for code in (400, 200)] == [1, 1]


def test_a_client_that_leaves_logs_no_traceback(
    explainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it leaves while it sends, while it waits, or while it is answered."""
    body = large_request()
    with serving_here(explainer, Limits()) as client, caplog.at_level(logging.WARNING):
        for sent in (body[:50], body[: len(body) // 2], body):
            for seconds in (0.0, 0.02, 0.2):
                with connect(client) as leaving:
                    leaving.sendall(sent)
                    time.sleep(seconds)
        assert comes(lambda: figure(client, "vitcx_queue_depth") == 0)
        assert comes(lambda: figure(client, "vitcx_connections") <= 1)
        assert is_served(client)
    assert not [record for record in caplog.records if record.exc_info]
    assert "Traceback" not in caplog.text
    assert "never retrieved" not in caplog.text


class FakeTransport:
    """What a connection sees of asyncio's."""

    def __init__(self, left: int = 0) -> None:
        self.left = left
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True


def test_who_has_kept_us_waiting_for_the_longest_makes_room() -> None:
    """Silent before slow readers, these before slow senders, these before who is worked for."""
    reasons: list[str] = []
    connections = Connections(Limits(connections=4), reasons.append)
    worked, sending, reading, silent = (FakeTransport() for _ in range(4))
    connections.opened(worked).begin_work(receiving=False)  # type: ignore[arg-type]
    connections.opened(sending).begin_work(receiving=True)  # type: ignore[arg-type]
    connections.opened(reading)  # type: ignore[arg-type]
    reading.left = 5
    connections.opened(silent)  # type: ignore[arg-type]
    gone = []
    for _ in range(3):
        connections.opened(FakeTransport()).begin_work(receiving=False)  # type: ignore[arg-type]
        gone.append([t.aborted for t in (silent, reading, sending, worked)].count(True))
    assert gone == [1, 2, 3]
    assert not worked.aborted
    assert reasons == ["connections_full"] * 3
    assert len(connections) == 4


def test_a_reader_that_keeps_up_is_left_alone() -> None:
    limits = Limits(stall_seconds=10, least_rate=1000)
    connections = Connections(limits, lambda reason: None)
    transport = FakeTransport()
    connection = connections.opened(transport)  # type: ignore[arg-type]
    now = time.monotonic()
    connection.begin_work(receiving=False)
    connection.wrote(100_000)
    connection.end_work()
    for i in range(9):  # 10,000 bytes in each span of ten seconds
        transport.left = 100_000 - 10_000 * i
        assert connection.overdue(now + 10 * i, limits) is None
    assert connection.overdue(now + 85, limits) is None, "its ten seconds are not over"
    assert connection.overdue(now + 91, limits) == "answer_unread"
    transport.left = 0
    assert connection.overdue(now + 92, limits) is None, "its wait for the next head begins now"
    assert connection.overdue(now + 103, limits) == "head_slow"
