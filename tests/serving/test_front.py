"""What every request passes: host, origin, identity, last resort, and what is left of a body."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from typing import Any

import httpx
import pytest

from vitcx.serving.access import Access
from vitcx.serving.asgi import answer_error
from vitcx.serving.figures import Figures
from vitcx.serving.guard import LOOPBACK_HOSTS, Guard
from vitcx.serving.logs import RateLimit, server_log


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await answer_error(send, 200, scope["state"]["request_id"])


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("a fault of ours")


def ask(app: Any, url: str = "http://localhost/x", method: str = "POST", **more: Any) -> Any:
    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.request(method, url, **more)

    return asyncio.run(go())


def guarded(*hosts: str, token: str | None = None) -> Any:
    return Access(Guard(hello, token, 1000, hosts or LOOPBACK_HOSTS), Figures())


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"]
)
def test_loopback_names_are_known(host: str) -> None:
    assert ask(guarded(), headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::2]", ":8"]
)
def test_other_names_are_refused_but_for_probes(host: str) -> None:
    """A page elsewhere whose name points at this machine must not read what we answer."""
    answer = ask(guarded(), headers={"Host": host})
    assert answer.status_code == 421
    assert "--allowed-host" in answer.json()["error"]
    assert ask(guarded(), "http://localhost/readyz", headers={"Host": host}).status_code == 200


def test_more_names_can_be_allowed() -> None:
    there = {"Host": "maps.example:80"}
    assert ask(guarded("maps.example"), headers=there).status_code == 200
    assert ask(guarded("*"), headers=there).status_code == 200
    assert ask(guarded("fd00::1"), headers={"Host": "[fd00::1]:8000"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://LOCALHOST:8000", "Host": "localhost:8000"}, 200),
        ({"Origin": "https://localhost", "Host": "localhost:443"}, 200),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_what_pages_of_other_origins_send_is_refused(headers: dict[str, str], status: int) -> None:
    assert ask(guarded(), headers=headers).status_code == status
    assert ask(guarded(), method="GET", headers=headers).status_code == 200


@pytest.mark.parametrize("name", ["Host", "Authorization", "Content-Type", "Content-Length"])
def test_a_header_that_two_programs_may_read_differently_is_refused(name: str) -> None:
    answer = ask(guarded(), headers=[("Host", "localhost"), (name, "1"), (name, "2")])
    assert answer.status_code == 400
    assert answer.json()["error"] == f"the request has the header {name.lower()} more than once"
    many = [
        ("Host", "localhost"),
        ("Cookie", "a"),
        ("Cookie", "b"),
        ("Accept", "a"),
        ("Accept", "b"),
    ]
    assert ask(guarded(), headers=many).status_code == 200


def test_a_compressed_body_is_refused_and_not_taken_for_a_picture() -> None:
    assert ask(guarded(), headers={"Content-Encoding": "identity"}).status_code == 200
    answer = ask(guarded(), headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415
    assert "send it as it is" in answer.json()["error"]


def test_each_request_has_an_identity() -> None:
    answers = [ask(guarded()) for _ in range(2)]
    names = {answer.headers["X-Request-ID"] for answer in answers}
    assert len(names) == 2
    own = ask(guarded(), headers={"X-Request-ID": "trace-7"})
    assert (own.headers["X-Request-ID"], own.json()["error"]) == ("trace-7", "trace-7")
    for bad in ("x" * 65, "a\tb", "é"):
        answer = ask(guarded(), headers=[("X-Request-ID", bad.encode())])
        assert answer.headers["X-Request-ID"] != bad


def test_an_error_of_our_own_is_an_answer_that_closes(caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(Access(broken, Figures()), headers={"X-Request-ID": "abc"})
    assert answer.status_code == 500
    assert answer.headers["Connection"] == "close"
    assert answer.json() == {"error": "an error of the server's own: its log says more"}
    assert "request abc failed" in caplog.text


def exchange(app: Any, pieces: list[bytes], *, endless: bool = False) -> tuple[Any, int]:
    """The answer's start, and how many pieces of the body were taken."""
    taken, sent = 0, []

    async def receive() -> Any:
        nonlocal taken
        if taken == len(pieces):
            await asyncio.sleep(60)
        taken += 1
        more = endless or taken < len(pieces)
        return {"type": "http.request", "body": pieces[taken - 1], "more_body": more}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"1000000")]
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": headers, "state": {}}
    asyncio.run(app(scope, receive, send))
    return sent[0], taken


def test_what_is_left_of_a_body_is_taken_in_before_an_early_answer() -> None:
    start, taken = exchange(Access(hello, Figures()), [b"x" * 1000] * 20)
    assert taken == 20
    assert (b"connection", b"close") not in start["headers"]


@pytest.mark.parametrize(
    ("pieces", "endless"), [([b"x" * 100_000] * 50, False), ([b"x"], True)], ids=["long", "slow"]
)
def test_a_long_or_slow_rest_of_a_body_closes_the_connection(
    pieces: list[bytes], endless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcx.serving.access._LEFTOVER_SECONDS", 0.05)
    start, taken = exchange(Access(hello, Figures()), pieces, endless=endless)
    assert taken < 50
    assert (b"connection", b"close") in start["headers"]


def logged(kind: str, count: int = 1) -> list[str]:
    stream = io.StringIO()
    with server_log(kind, stream):
        for _ in range(count):
            ask(guarded(), "http://localhost/a%0Ab", headers={"X-Request-ID": "abc"})
        end = time.monotonic() + 10
        while stream.getvalue().count("\n") < count and time.monotonic() < end:
            time.sleep(0.01)
    return stream.getvalue().splitlines()


def test_the_log_has_a_line_for_each_request() -> None:
    (line,) = logged("text")
    assert "POST /a\\nb -> 200" in line
    assert "[abc from" in line
    (line,) = logged("json")
    entry = json.loads(line)
    assert entry["request_id"] == "abc"
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", "/a\\nb", 200)
    assert entry["seconds"] >= 0


def test_the_log_is_bounded_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("vitcx.serving.logs.time.monotonic", lambda: now)
    limit = RateLimit(rate=10, burst=5)

    def record(access: bool) -> logging.LogRecord:
        made = logging.LogRecord("x", logging.INFO, "", 1, "", None, None)
        if access:
            made.access = {}
        return made

    assert sum(limit.filter(record(True)) for _ in range(2000)) == 5
    assert limit.filter(record(False)), "errors have a share of their own"
    now += 0.25
    last = [record(True) for _ in range(3)]
    assert [limit.filter(one) for one in last] == [True, True, False]
    assert last[0].left_out == 1995
    assert not hasattr(last[1], "left_out")


def test_a_log_that_nobody_reads_holds_nothing_up() -> None:
    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            time.sleep(60)
            return 0

    with server_log("text", Stuck()):
        for _ in range(20):
            logging.getLogger("vitcx").error("one more")


def test_a_traceback_is_one_line_of_json() -> None:
    stream = io.StringIO()
    with server_log("json", stream):
        ask(Access(broken, Figures()))
        end = time.monotonic() + 10
        while stream.getvalue().count("\n") < 2 and time.monotonic() < end:
            time.sleep(0.01)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert "RuntimeError: a fault of ours" in lines[0]["traceback"]
    assert lines[1]["status"] == 500
