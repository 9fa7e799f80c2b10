"""Decoding in a process of its own, which is killed when it takes too long.

Nothing stops a decoder from within its process: some files of a few megabytes keep one busy for
hours, others find its faults. The files of strangers go to such a process. It stays for the next
file, and ends by itself when its parent does. `decoders` keeps them.

A request is the name, the limit of pixels and the file. An answer is one sentence, or the size and,
if the parent then says so, the pixels.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from PIL import Image

from vitcx.runtime.errors import EngineError, InputError
from vitcx.runtime.pictures.decoding import decode_file

# Bytes of the name, limit of pixels, bytes of the file; width, height (0: no picture), and bytes of
# the sentence that says why.
_ASK, _ANSWER = struct.Struct("<QQQ"), struct.Struct("<QQQ")
_START = f"""
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from {__name__} import serve
serve()
"""
# Beside the pixels themselves; decoders hold the file, coefficients and a few copies.
_ROOM_BYTES = 4 << 30
_SEND, _DROP = b"y", b"n"
_STARTING_SECONDS = 60.0
_STRIP_PIXELS = 1 << 18


class Decoder:
    """The process, seen from its parent; one file at a time.

    Raises
    ------
    EngineError
        If no process can be started.
    """

    def __init__(self) -> None:
        words = [sys.executable, "-c", _START, json.dumps(sys.path)]
        try:
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except (OSError, ValueError) as error:
            raise EngineError(f"no process to decode pictures can be started: {error}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._from: BinaryIO = self._process.stdout  # type: ignore[assignment]
        with _Watch(self._process, _STARTING_SECONDS):
            started = self._from.read(1) == b"!"
        if not started:
            self.close()
            raise EngineError("the process that decodes pictures does not start")

    @property
    def usable(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the file that it is at work on, from another thread; it must be closed then."""
        self._process.kill()

    def decode(
        self, data: bytes, name: str, max_pixels: int, seconds: float, admit: Callable[[int], bool]
    ) -> Image.Image | None:
        """The picture in a file; None if it is not admitted. After any error but `InputError` the
        decoder must be closed.

        Parameters
        ----------
        seconds : decoding may take that long.
        admit : asked, with the number of pixels, whether they may come here.

        Raises
        ------
        InputError
            What `decode_file` raises; and if it takes longer, or the decoder crashes.
        """
        with _Watch(self._process, seconds) as watch:
            try:
                size = self._ask(data, name, max_pixels)
            except (OSError, EOFError, struct.error):
                size = None
        if watch.too_late:
            self.close()
            if size is None:
                raise InputError(f"{name} takes longer than {seconds:g} s to decode")
        if size is not None:
            wanted = admit(size[0] * size[1])
            with contextlib.suppress(OSError, EOFError):
                self._to.write(_SEND if wanted else _DROP)
                self._to.flush()
                return _receive(self._from, *size) if wanted else None
        self.close()
        raise InputError(f"{name} is damaged: it makes its decoder crash")

    def _ask(self, data: bytes, name: str, max_pixels: int) -> tuple[int, int]:
        """Width and height, once it is decoded; `InputError` where it is no picture."""
        title = name.encode("utf-8", "backslashreplace")
        self._to.write(_ASK.pack(len(title), max_pixels, len(data)) + title)
        self._to.write(data)
        self._to.flush()
        width, height, length = _ANSWER.unpack(_read(self._from, _ANSWER.size))
        if not width:
            raise InputError(_read(self._from, length).decode("utf-8", "replace"))
        return width, height

    def close(self) -> None:
        """End the process. Twice does no harm."""
        self._process.kill()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()


class _Watch:
    """Kills a process that is still at work after some seconds."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._over = False
        self.too_late = False
        self._timer = threading.Timer(seconds, self._kill)
        self._timer.daemon = True

    def _kill(self) -> None:
        with self._lock:  # or the process could be killed after its work, at its next file
            if not self._over:
                self.too_late = True
                self._process.kill()

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._over = True
        self._timer.cancel()


def _read(pipe: BinaryIO, length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _strips(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of a picture, one below the other: it is not held a second time as bytes."""
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _send(pipe: BinaryIO, image: Image.Image) -> None:
    for box in _strips(*image.size):
        pipe.write(image.crop(box).tobytes())


def _receive(pipe: BinaryIO, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height))
    for box in _strips(width, height):
        size = (width, box[3] - box[1])
        image.paste(Image.frombytes("RGB", size, _read(pipe, 3 * size[0] * size[1])), box)
    return image


def serve() -> None:
    """The process's own side: decode what comes on stdin until it ends."""
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a library that prints must not speak into the answers
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the parent, which then closes stdin
    _bound_memory()
    answers.write(b"!")
    answers.flush()
    while head := asked.read(_ASK.size):
        name_length, max_pixels, length = _ASK.unpack(head)
        name = asked.read(name_length).decode("utf-8", "replace")
        try:
            image = decode_file(io.BytesIO(asked.read(length)), name, max_pixels)
        except InputError as error:
            told = str(error).encode("utf-8", "replace")
            answers.write(_ANSWER.pack(0, 0, len(told)) + told)
        else:
            answers.write(_ANSWER.pack(*image.size, 0))
            answers.flush()
            if asked.read(len(_SEND)) == _SEND:
                _send(answers, image)
            del image
        answers.flush()


def _bound_memory() -> None:
    """Memory that a damaged file may make a decoder ask for is refused, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_ROOM_BYTES, most))
