"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o666, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it replaces `path`, on failure it is removed.

    A reader sees the old file or the whole new one, never a part. The temporary name keeps the
    suffix of `path`, because image and array writers choose their format by it. The file is made
    with `mode`, of which the process's umask takes its part, as `open` does. `durable` waits until
    the file and its name are on the disk, so that a loss of power leaves the whole file too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _create_beside(path, mode)
    try:
        yield temporary
        if durable:
            _flush(temporary, os.O_RDWR)
        temporary.replace(path)
        if durable and os.name == "posix":  # elsewhere a folder cannot be opened
            _flush(path.parent, os.O_RDONLY)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create_beside(path: Path, mode: int) -> Path:
    """A new, empty file in the folder of `path`.

    The mode is given to the system when it makes the file: the umask can only be read by changing
    it, and that is the whole process's, whose other threads make files meanwhile.
    """
    while True:
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
        try:
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        except FileExistsError:
            continue
        os.close(handle)
        return temporary


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
