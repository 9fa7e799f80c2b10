"""A server of our own on loopback, and what its clients send."""

from __future__ import annotations

import io
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image

from tests.tiny_bundle import random_picture

if TYPE_CHECKING:
    from vitcx.runtime.explainer import Explainer
    from vitcx.serving.limits import Limits

SOURCE = Path(__file__).resolve().parents[2] / "src"
TIMEOUT = 30


@contextmanager
def serving(
    bundle: str, *more: str, token: str | None = None, at: str = "http://127.0.0.1:"
) -> Iterator[tuple]:
    """A server process and a client of it."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    environment.pop("VITCX_TOKEN", None)
    if token:
        environment["VITCX_TOKEN"] = token
    words = [sys.executable, "-m", "vitcx", "serve", "--bundle", bundle, "--port", "0"]
    words += ["--engine", "onnxruntime", "--threads", "1", "--batch-size", "8", *more]
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        line = process.stdout.readline()
        if process.poll() is not None:  # else there is more to come, without end
            line += process.stdout.read()
        assert at in line
        url = next(word for word in line.split() if word.startswith("http"))
        with httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=False) as client:
            yield process, client
    finally:
        process.kill()
        process.wait(TIMEOUT)
        process.stdout.close()


def png(seed: int = 0, size: tuple[int, int] = (40, 36)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_picture(seed, size)).save(buffer, "png")
    return buffer.getvalue()


def address(client: httpx.Client) -> tuple[str, int]:
    """Of the server that the client talks to."""
    return client.base_url.host, client.base_url.port


def connect(client: httpx.Client) -> socket.socket:
    """A connection of its own."""
    return socket.create_connection(address(client), TIMEOUT)


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    """A request's head."""
    text = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines])
    return f"{text}\r\n\r\n".encode()


def until_closed(connection: socket.socket) -> bytes:
    """All that comes until the server closes or cuts the connection."""
    got = b""
    try:
        while piece := connection.recv(65536):
            got += piece
    except ConnectionError:
        pass
    return got


def figure(client: httpx.Client, name: str) -> float:
    """One of the server's figures, with its labels; 0 if it has none."""
    try:
        text = client.get("metrics").text
    except httpx.TransportError:
        # The server may close a connection that was idle just as the request leaves.
        text = client.get("metrics").text
    for line in text.splitlines():
        if line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


@contextmanager
def serving_here(explainer: Explainer, limits: Limits, **more: Any) -> Iterator[httpx.Client]:
    """A server in a thread of this process, for limits that have no option; a client of it."""
    from vitcx.serving.app import make_app
    from vitcx.serving.server import Server

    started: queue.Queue[str] = queue.Queue()
    server = Server(make_app(explainer, limits, **more), started.put)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with httpx.Client(
                base_url=started.get(timeout=TIMEOUT), timeout=TIMEOUT, trust_env=False
            ) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(TIMEOUT)


def comes(condition: Callable[[], bool]) -> bool:
    """Whether it does, before long."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
