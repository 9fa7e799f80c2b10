"""Cached code: compiled kernels, TensorRT's plans, and what it keeps beside them.

What is read from here runs on the GPU and in the driver, so one rule holds for all of it. A file is
read only from a folder that belongs to this user and that nobody else can write to, only if the
same is true of the file, and only if the digest at its start is that of the rest. A folder or file
that does not pass is left alone, with a warning, and what it would have held is made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from pathlib import Path

import platformdirs

from vitcx.kernels.files import replacing

log = logging.getLogger("vitcx")

_DIGEST_BYTES = 32
_WRITABLE_BY_OTHERS = 0o022
# Of the files. The folder has the same for its owner, and the right to enter.
PRIVATE_FILE = 0o600
_PRIVATE_FOLDER = 0o700


def code_folder(name: str) -> Path:
    """The folder `name` in this user's cache."""
    return Path(platformdirs.user_cache_dir("vitcx")) / name


def read_code(path: Path, what: str) -> bytes | None:
    """The content of a file that `write_code` wrote; None where there is none that can be trusted.

    Parameters
    ----------
    path : of the file.
    what : it is, for the log: "plan", "compiled kernel".
    """
    try:
        if not _folder_is_trusted(path.parent, what):
            return None
        # The open file is looked at, not its name: that may be another file by then.
        with path.open("rb") as file:
            trusted = _is_ours(os.fstat(file.fileno()))
            written = file.read() if trusted else b""
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("the %s %s cannot be read, it is made again: %s", what, path, error)
        return None
    digest, content = written[:_DIGEST_BYTES], written[_DIGEST_BYTES:]
    if not trusted:
        log.warning(
            "the %s %s belongs to another user, or others can write to it: it is made again",
            what,
            path,
        )
        return None
    if hashlib.sha256(content).digest() != digest:
        log.warning("the %s %s is not the file that was written: it is made again", what, path)
        return None
    return content


def write_code(path: Path, content: bytes, what: str) -> bool:
    """Keep some code that only this user can read. Whether that was done: the log says why not.

    A cache that cannot be written costs the next start its time, and no more.
    """
    if not prepare_folder(path.parent, what):
        return False
    try:
        with replacing(path, PRIVATE_FILE) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
    except OSError as error:
        log.warning(
            "the %s %s cannot be written, the next start makes it again: %s", what, path, error
        )
        return False
    return True


def prepare_folder(folder: Path, what: str) -> bool:
    """Make a folder for code; False, with a warning, if it cannot be made or trusted."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_FOLDER)
        return _folder_is_trusted(folder, what)
    except OSError as error:
        log.warning("no %s can be kept in %s: %s", what, folder, error)
        return False


def _folder_is_trusted(folder: Path, what: str) -> bool:
    if _is_ours(folder.stat()):
        return True
    log.warning(
        "the folder %s belongs to another user, or others can write to it: no %s is read from it "
        "or kept in it, because that is code; run  chmod go-w %s",
        folder,
        what,
        folder,
    )
    return False


def _is_ours(status: os.stat_result) -> bool:
    """Whether the user owns it and no other can write to it. Windows has no such modes."""
    if sys.platform == "win32":
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & _WRITABLE_BY_OTHERS
