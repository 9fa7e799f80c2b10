"""One writer in a folder at a time: a lock that its process takes with it, however it ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from pathlib import Path

from vitcx.kernels.closing import Closing
from vitcx.runtime.errors import InputError

log = logging.getLogger("vitcx")

# What systems say of a lock that somebody else holds, and where nothing can be locked.
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class FolderLock(Closing):
    """Holds a folder from its making to `close`, or to the end of the process.

    The file of the lock is removed at the end. Who has opened it meanwhile sees that and opens the
    next one, so that no two hold locks of two files.

    Parameters
    ----------
    folder : it is there.
    name : of the lock's file in it.
    taken : what to say where another process, or another lock of this one, holds it; None waits.

    Raises
    ------
    InputError
        With `taken`.
    """

    def __init__(self, folder: Path, name: str, taken: str | None) -> None:
        self._path, self._taken = folder / name, taken
        self._handle: int | None = None
        while self._handle is None:
            self._handle = self._take()

    def _take(self) -> int | None:
        """The open, locked file; None if its name has gone in between."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, wait=self._taken is None)
        except OSError as error:
            os.close(handle)
            if error.errno in _HELD:
                if self._taken is None:
                    return None  # the system has lost patience, and we have not
                raise InputError(self._taken) from None
            if error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "no file can be locked in '%s': let one program write there at a time",
                self._path.parent,
            )
            return -1
        if self._is_there(handle):
            return handle
        os.close(handle)
        return None

    def close(self) -> None:
        """Let others in. Twice does no harm."""
        handle, self._handle = self._handle, -1
        if handle is None or handle < 0:
            return
        if os.name == "posix":
            # While it is locked: later, the file could be the next holder's.
            if self._is_there(handle):
                self._path.unlink(missing_ok=True)
            os.close(handle)
        else:  # an open file cannot be removed there, nor one that somebody else has opened
            os.close(handle)
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _is_there(self, handle: int) -> bool:
        """Whether the name of the lock still stands for the open file."""
        try:
            return os.path.samestat(os.fstat(handle), self._path.stat())
        except OSError:
            return False


def _lock(handle: int, *, wait: bool) -> None:
    if sys.platform == "win32":
        import msvcrt

        # With LK_LOCK the system waits for ten seconds.
        msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
