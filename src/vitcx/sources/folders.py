"""The pictures below a folder, and those that fit a pattern.

Links to folders are followed, and no folder is walked twice: a link that leads back ends there.
Hidden files and folders (also the ``._`` files of a Mac) are no part of a data set. What is passed
over is counted and named.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures.formats import PICTURE_SUFFIXES

log = logging.getLogger("vitcx")

_MAGIC = re.compile(r"[*?\[]")
_NAMED = 3  # of each kind of what is passed over
_SEEN = "links to folders that are searched anyway"


@dataclass
class PassedOver:
    """What a search leaves out, by reason."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def note(self, reason: str, path: str) -> None:
        self.found.setdefault(reason, []).append(path)

    def tell(self, source: str) -> None:
        """A line in the log for each reason."""
        for reason, paths in self.found.items():
            named = ", ".join(f"'{path}'" for path in sorted(paths)[:_NAMED])
            more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
            log.warning("'%s': passed over %s (%d): %s%s", source, reason, len(paths), named, more)


def is_picture(name: str) -> bool:
    """Whether a file of that name is taken for a picture where nobody names it."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES


def pictures_below(folder: Path, apart_from: Path | None) -> list[Path]:
    """Every picture below a folder, sorted by its parts.

    Parameters
    ----------
    apart_from : a folder that is no part of the search.

    Raises
    ------
    InputError
        If the folder itself cannot be read.
    """
    passed = PassedOver()
    walk = _Walk(folder, apart_from, passed)
    found = _all_of(walk.files(str(folder)), str(folder))
    passed.tell(str(folder))
    return sorted(path for path in found if is_picture(path.name))


def matches_of(pattern: str, apart_from: Path | None) -> list[Path]:
    """The files that fit a pattern of ``*``, ``?``, ``[...]`` and ``**`` (any depth), sorted."""
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    start = Path(*parts[:fixed])
    if fixed == len(parts) or not start.is_dir():
        return []
    passed = PassedOver()
    walk = _Walk(start, apart_from, passed)
    found = _all_of(walk.matches(str(start), parts[fixed:]), pattern)
    passed.tell(pattern)
    return sorted(set(found), key=str)


def _all_of(paths: Iterator[str], source: str) -> list[Path]:
    try:
        return [Path(path) for path in paths]
    except RecursionError:
        raise InputError(f"'{source}' has folders in folders, too many to search") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


class _Walk:
    """A search from one folder."""

    def __init__(self, start: Path, apart_from: Path | None, passed: PassedOver) -> None:
        self._start = str(start)
        self._real_start = os.path.realpath(start)
        self._apart = os.path.realpath(apart_from) if apart_from else None
        self._passed = passed
        self._walked: set[tuple[object, ...]] = set()

    def files(self, folder: str) -> Iterator[str]:
        """All files below."""
        if not self._is_new(folder):
            return
        for entry in self._entries(folder):
            if entry.name.startswith("."):
                if _is_folder(entry) or is_picture(entry.name):
                    self._passed.note("hidden files and folders", entry.path)
            elif _is_folder(entry):
                if entry.is_symlink() and self._comes_anyway(entry.path):
                    self._passed.note(_SEEN, entry.path)
                else:
                    yield from self.files(entry.path)
            elif _is_file(entry):
                yield entry.path
            elif is_picture(entry.name):
                self._passed.note("pipes, devices and broken links", entry.path)

    def matches(self, folder: str, parts: tuple[str, ...]) -> Iterator[str]:
        """Files below that fit the parts of a pattern."""
        if not self._is_new(folder, parts):
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            if rest:
                yield from self.matches(folder, rest)
            for entry in self._entries(folder):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    yield from self.matches(entry.path, parts)
                elif not rest and _is_file(entry):
                    yield entry.path
            return
        fits = re.compile(fnmatch.translate(os.path.normcase(part))).match
        for entry in self._entries(folder):
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if hidden or not fits(os.path.normcase(entry.name)):
                continue
            if rest and _is_folder(entry):
                yield from self.matches(entry.path, rest)
            elif not rest and _is_file(entry):
                yield entry.path

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if folder == self._start:
                why = error.strerror or str(error)
                raise InputError(f"the folder '{folder}' cannot be read ({why})") from None
            self._passed.note("folders that cannot be read", folder)
            return []

    def _is_new(self, folder: str, parts: tuple[str, ...] = ()) -> bool:
        """Whether a folder has not been walked yet with these parts of the pattern to come."""
        real = os.path.realpath(folder)
        if real == self._apart:
            return False
        with contextlib.suppress(OSError):
            status = Path(real).stat()
            # Systems that do not number their files have names at least.
            place = (status.st_dev, status.st_ino) if status.st_ino else (real,)
            if (*place, parts) in self._walked:
                self._passed.note(_SEEN, folder)
                return False
            self._walked.add((*place, parts))
        return True

    def _comes_anyway(self, link: str) -> bool:
        """Whether a link leads to the start, or below it on a way without hidden folders."""
        real = Path(os.path.realpath(link))
        if not real.is_relative_to(self._real_start):
            return False
        below = real.relative_to(self._real_start)
        return not any(part.startswith(".") for part in below.parts)
