"""One picture of a source, read when its turn comes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures.decoders import OWN_DECODE_SECONDS
from vitcx.runtime.pictures.reading import EncodedPicture, picture_file
from vitcx.runtime.plain_files import open_plain

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Item:
    """One picture of a source.

    Attributes
    ----------
    path : what the output calls it; for a tar member, ``ARCHIVE/MEMBER``.
    target : a class index or a word (see `vitcx.runtime.targets`), or None where none is given.
    box : (x0, y0, x1, y1) in pixels of the picture, or None.
    member : (archive, offset, size) of a tar member.
    root : the folder that a relative `path` is relative to; "" is the working folder.
    problem : why the picture is not read at all; "" where it is.
    name : the path as its source has it: below the folder, in the list, in the archive.
    """

    path: str
    target: int | str | None = None
    box: Box | None = None
    member: tuple[str, int, int] | None = None
    root: str = ""
    problem: str = ""
    name: str = ""

    def picture(self) -> EncodedPicture:
        """What `Explainer.request` takes; decoded in a process of its own, within bounds."""
        if self.problem:
            return EncodedPicture(self.path, partial(_refuse, f"'{self.path}' {self.problem}"))
        if self.member is None:
            return picture_file(Path(self.root, self.path), OWN_DECODE_SECONDS)
        read = partial(_read_member, *self.member)
        return EncodedPicture(self.path, read, seconds=OWN_DECODE_SECONDS)


def digest_of(items: Iterable[Item]) -> str:
    """SHA-256 of the list: paths, targets, boxes, order. Not of the pictures' contents."""
    digest = hashlib.sha256()
    for item in items:
        line = [item.path, item.target, item.box, item.member and item.member[1:]]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def _read_member(archive: str, offset: int, size: int) -> bytes:
    with open_plain(archive) as file:
        file.seek(offset)
        return file.read(size)


def _refuse(problem: str) -> bytes:
    raise InputError(problem)
