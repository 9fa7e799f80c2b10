"""Opening files that are files: never a pipe, a socket or a device, which may wait for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from vitcx.runtime.errors import InputError

# What is at a path may change after it was looked at: O_NONBLOCK, so that a pipe does not wait.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_plain(path: str | Path) -> BinaryIO:
    """Open a regular file to read its bytes.

    Raises
    ------
    InputError
        If there is something else at `path`, or a name that no file can have.
    OSError
        If there is nothing, or it may not be read.
    """
    try:
        mode = Path(path).stat().st_mode
        _check_kind(path, mode)  # Windows opens no folder, and would say that it is forbidden
        handle = os.open(path, _FLAGS)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r:.300} is not a file name ({error})") from None
    try:
        _check_kind(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_plain(path: str | Path, most_bytes: int) -> bytes:
    """All bytes of a regular file that should be small.

    Raises
    ------
    InputError, OSError
        As `open_plain`, and if there are more than `most_bytes`.
    """
    with open_plain(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise InputError(f"'{path}' has more than {most_bytes:,} bytes")
    return data


def _check_kind(path: str | Path, mode: int) -> None:
    """Raise `InputError` unless it is a regular file."""
    if stat.S_ISDIR(mode):
        raise InputError(f"'{path}' is a folder")
    if not stat.S_ISREG(mode):
        names = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = names.get(stat.S_IFMT(mode), "a device")
        raise InputError(f"'{path}' is {kind}, not a file")
