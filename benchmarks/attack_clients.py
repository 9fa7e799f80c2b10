"""A server of our own and its clients: an honest one, and those that send what they should not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bad_input import CHEAP, photo

ATTACKERS = 2
# More than a server gives a request by default: what is valid after all may be long.
HANG_SECONDS = 90.0
_EXAMPLES = 5
_LAST = b"\r\nConnection: close\r\n"


@contextlib.contextmanager
def serving(bundle: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server process and its port; its log goes to nobody."""
    words = [sys.executable, "-m", "vitcx", "serve", "--bundle", bundle, "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "VITCX_TOKEN"}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        url = next(w for w in process.stdout.readline().split() if w.startswith("http://"))
        yield process, int(url.rstrip("/").rpartition(":")[2])
    finally:
        process.kill()
        process.wait(30)


def exchange(port: int, request: bytes, source: str = "127.0.0.1") -> tuple[str, bytes]:
    """The status of the answer to one request on a connection of its own, and the answer.

    `source` is the client's address.

    "lost" or "closed" if there was none, "hang" if it did not come in time. A request that does not
    say that it is the last may have no end: this side of the connection is closed after it.
    """
    got = b""
    whole = _LAST in request
    try:
        with socket.create_connection(
            ("127.0.0.1", port), HANG_SECONDS, source_address=(source, 0)
        ) as connection:
            with contextlib.suppress(ConnectionError):  # the answer may be there all the same
                connection.sendall(request)
            if not whole:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                got += piece
    except TimeoutError:
        return "hang", got
    except ConnectionError:
        pass
    got = got.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if got.startswith(b"HTTP/"):
        return got[9:12].decode("latin-1"), got
    return ("lost" if whole else "closed"), got


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def post(kind: str, body: bytes, path: str = "/v1/explain") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


class Honest(threading.Thread):
    """A client that asks for one explanation after the other and notes how long each takes.

    Parameters
    ----------
    source : its address; the attackers' is 127.0.0.1.
    """

    def __init__(self, port: int, source: str = "127.0.0.2") -> None:
        super().__init__(daemon=True)
        self._request = post("image/jpeg", photo(1, (320, 240), format="jpeg"))
        self._port = port
        self._source = source
        self._ended = threading.Event()
        self.seconds: list[float] = []
        self.codes: Counter[str] = Counter()

    def run(self) -> None:
        while not self._ended.is_set():
            start = time.perf_counter()
            code, _ = exchange(self._port, self._request, self._source)
            self.seconds.append(time.perf_counter() - start)
            self.codes[code] += 1

    def end(self) -> dict[str, Any]:
        self._ended.set()
        self.join(2 * HANG_SECONDS)
        shares = np.percentile(self.seconds, (50, 95, 100)) if self.seconds else [0, 0, 0]
        names = ("p50_s", "p95_s", "most_s")
        figures = {name: round(float(s), 3) for name, s in zip(names, shares, strict=True)}
        return {"answers": dict(self.codes), **figures}


def attack(port: int, count: int, make: Callable[[random.Random], bytes], seconds: float) -> Any:
    """Send `count` requests by a few attackers, for `seconds` at most; what was answered."""
    end = time.monotonic() + seconds
    codes: Counter[str] = Counter()
    failures: list[str] = []
    slowest = 0.0
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        nonlocal slowest
        while time.monotonic() < end:
            with lock:
                seed = next(numbers, None)
            if seed is None:
                return
            request = make(random.Random(seed))
            start = time.monotonic()
            code, got = exchange(port, request)
            with lock:
                codes[code] += 1
                slowest = max(slowest, time.monotonic() - start)
                if is_failure(code) and len(failures) < _EXAMPLES:
                    failures.append(f"seed {seed}: {code} {got[-200:]!r}")

    threads = [threading.Thread(target=work) for _ in range(ATTACKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "wanted": count,
        "sent": sum(codes.values()),
        "answers": dict(sorted(codes.items())),
        "failures": sum(n for code, n in codes.items() if is_failure(code)),
        "examples": failures,
        "slowest_s": round(slowest, 2),
    }


def is_failure(code: str) -> bool:
    return code in ("hang", "lost", "500", "501", "502", "504")


def connections(port: int, silent: int, trickling: int, seconds: float) -> dict[str, Any]:
    """Silent connections, and clients that send a head or a body byte by byte, for a while."""
    stop = time.monotonic() + seconds
    with contextlib.ExitStack() as opened:
        made = 0
        for _ in range(silent):
            with contextlib.suppress(OSError):
                opened.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                made += 1

        def trickle(i: int) -> None:
            text = post("image/png", b"x" * 10_000)
            at = text.index(b"\r\n\r\n") + 4 if i % 2 else 0
            while time.monotonic() < stop:
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", port), 5) as connection,
                ):
                    connection.sendall(text[:at])
                    for byte in text[at:]:
                        connection.sendall(bytes([byte]))
                        time.sleep(0.01)
                        if time.monotonic() > stop:
                            break

        threads = [threading.Thread(target=trickle, args=(i,)) for i in range(trickling)]
        for thread in threads:
            thread.start()
        probes = []
        while time.monotonic() < stop:
            start = time.perf_counter()
            code, _ = exchange(
                port, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            probes.append((code, time.perf_counter() - start))
            time.sleep(0.2)
        for thread in threads:
            thread.join()
    return {
        "silent": made,
        "trickling": trickling,
        "seconds": round(seconds, 1),
        "probes": dict(Counter(code for code, _ in probes)),
        "slowest_probe_s": round(max((s for _, s in probes), default=0.0), 3),
        "failures": sum(code != "200" for code, _ in probes),
    }


def memory_mib(pid: int) -> float:
    """The most memory that a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def model_of(port: int) -> tuple[str, int]:
    """The name of the model that is served, and the pixels of its input's side."""
    _, got = exchange(
        port, b"GET /v1/classes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    name = json.loads(got.partition(b"\r\n\r\n")[2])["model"]
    head = f"GET /v2/models/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    _, got = exchange(port, head.encode())
    return name, json.loads(got.partition(b"\r\n\r\n")[2])["inputs"][0]["shape"][2]


def picture_request(file: bytes) -> bytes:
    """An upload of a picture that asks for as little work as there is."""
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + file
    body += b'\r\n--b\r\nContent-Disposition: form-data; name="settings"\r\n\r\n'
    return post("multipart/form-data; boundary=b", body + json.dumps(CHEAP).encode() + b"\r\n--b--")
