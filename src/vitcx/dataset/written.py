"""What a job has written, and whether it is still there as it was."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class OutputLostError(OSError):
    """What a job wrote is gone, or not as it was written."""


class Stamp(NamedTuple):
    """What tells a file from another one that has taken its place."""

    number: int
    size: int
    modified_ns: int


def stamp_of(path: Path) -> Stamp | None:
    """None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


class WrittenFiles:
    """The files of a folder as they were when they were noted."""

    def __init__(self) -> None:
        self._stamps: dict[Path, Stamp | None] = {}

    def note(self, path: Path) -> None:
        """Take a file as it is now for what was written."""
        self._stamps[path] = stamp_of(path)

    def is_there(self, path: Path) -> bool:
        """Whether a file was noted and is as it was then."""
        stamp = self._stamps.get(path)
        return stamp is not None and stamp_of(path) == stamp
