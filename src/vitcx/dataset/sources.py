"""What a job reads: folders, glob patterns, CSV and Parquet lists, WebDataset shards.

A source is listed once, in an order that is a function of its contents alone. The pictures
themselves are read when their turn comes.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import math
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vitcx.runtime.errors import InputError, MissingExtraError
from vitcx.runtime.pictures.reading import EncodedPicture

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_PATH_COLUMNS = ("path", "file", "image", "filename")
_TARGET_COLUMNS = ("target", "class_index", "label", "class")
_BOX_COLUMNS = ("x0", "y0", "x1", "y1")
MOST_DIGITS = 18  # of a class index: Python refuses to read thousands
# "3.0" is how programs write a column of whole numbers in which some are missing.
_INDEX = re.compile(rf"(\d{{1,{MOST_DIGITS}}})(?:\.0+)?")
# Of a picture in a tar archive, which is read as a whole: an archive may claim any size.
MOST_MEMBER_BYTES = 256 << 20

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Item:
    """One picture of a job.

    Attributes
    ----------
    path : what the output calls it; for a tar member, ``ARCHIVE/MEMBER``.
    target : a class index or name, or None for the job's own targets.
    box : (x0, y0, x1, y1) in pixels of the picture, or None.
    member : (archive, offset, size) of a tar member.
    root : the folder that a relative `path` is relative to; "" is the working folder.
    problem : why the picture is not read at all; "" where it is.
    """

    path: str
    target: int | str | None = None
    box: Box | None = None
    member: tuple[str, int, int] | None = None
    root: str = ""
    problem: str = ""

    def picture(self) -> Path | EncodedPicture:
        """What `Explainer.request` takes."""
        if self.problem:
            return EncodedPicture(self.path, partial(_refuse, f"'{self.path}' {self.problem}"))
        if self.member is None:
            return Path(self.root, self.path)
        return EncodedPicture(self.path, partial(_read_member, *self.member))


def digest_of(items: Iterable[Item]) -> str:
    """SHA-256 of the list: paths, targets, boxes, order. Not of the pictures' contents."""
    digest = hashlib.sha256()
    for item in items:
        line = [item.path, item.target, item.box, item.member and item.member[1:]]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def list_items(source: str, apart_from: Path | None = None) -> list[Item]:
    """The pictures of a source, in order.

    Parameters
    ----------
    source : a folder (all pictures below it), a glob pattern (``**`` for any depth), a .csv or
        .parquet list with a column ``path`` (or file, image, filename) and, if wanted, ``target``
        and ``x0, y0, x1, y1``, or one or more WebDataset .tar shards (a pattern may name many).
    apart_from : a folder that a search passes over: the job's own overlays are no new pictures.

    Raises
    ------
    InputError
        If there is nothing there, or a list cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        found = [
            p for p in sorted(path.rglob("*")) if _is_picture(p) and not _inside(p, apart_from)
        ]
        items = [Item(str(p)) for p in found]
    elif path.is_file():
        items = _from_file(path)
    else:
        # Path.glob takes no absolute pattern.
        names = sorted(glob.glob(source, recursive=True))  # noqa: PTH207
        found = [p for p in map(Path, names) if not _inside(p, apart_from)]
        if not found:
            raise InputError(f"no folder, file or pattern '{source}' matches anything")
        items = [item for p in found if p.is_file() for item in _from_file(p, one_of_many=True)]
    if not items:
        raise InputError(
            f"'{source}' holds no pictures: looked for {', '.join(sorted(PICTURE_SUFFIXES))}"
        )
    return items


def _inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.absolute().is_relative_to(folder.absolute())


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def _from_file(path: Path, *, one_of_many: bool = False) -> list[Item]:
    kind = path.suffix.lower()
    if kind == ".tar":
        return list(_from_tar(path))
    if kind in PICTURE_SUFFIXES:
        return [Item(str(path))]
    if one_of_many:
        return []  # a pattern such as dir/* meets other files too
    if kind == ".csv":
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                return _from_rows(list(csv.DictReader(file)), path)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"'{path}' is not a CSV file that can be read ({error})") from None
    if kind == ".parquet":
        return _from_rows(_parquet_rows(path), path)
    raise InputError(
        f"'{path}' is neither a picture nor a list of them: give a folder, a pattern, .csv, "
        ".parquet or .tar"
    )


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("a Parquet list", "pyarrow", "dataset") from None
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"'{path}' is not a Parquet file that can be read ({error})") from None
    return rows


def _from_rows(rows: list[Mapping[str, Any]] | list[dict[str, Any]], path: Path) -> list[Item]:
    if not rows:
        raise InputError(f"the list '{path}' is empty")
    columns = set(rows[0])
    path_column = next((name for name in _PATH_COLUMNS if name in columns), None)
    if path_column is None:
        raise InputError(
            f"the list '{path}' has the columns {', '.join(map(str, sorted(columns, key=str)))}: "
            f"one of {', '.join(_PATH_COLUMNS)} must say where the pictures are"
        )
    target_column = next((name for name in _TARGET_COLUMNS if name in columns), None)
    boxed = columns >= set(_BOX_COLUMNS)
    items = []
    for number, row in enumerate(rows, start=1):
        where = row[path_column]
        if not where:
            raise InputError(f"row {number} of '{path}' has no {path_column}")
        target = row[target_column] if target_column else None
        if isinstance(target, float):
            # A column of whole numbers in which some are missing is one of floats.
            target = None if math.isnan(target) else int(target) if target % 1 == 0 else target
        if target == "":
            target = None
        if isinstance(target, str) and (number_of := _INDEX.fullmatch(target.strip())):
            target = int(number_of[1])
        if isinstance(target, bool) or not isinstance(target, int | str | None):
            raise InputError(
                f"row {number} of '{path}' has a {target_column} that is neither an index nor a "
                f"name: {target!r:.100}"
            )
        try:
            edges = [float(row[name]) for name in _BOX_COLUMNS] if boxed else None
        except (TypeError, ValueError):
            edges = None  # a picture without a box, in a list where others have one
        if edges and not all(map(math.isfinite, edges)):
            edges = None  # likewise, as programs write it that have numbers only
        box: Box | None = (edges[0], edges[1], edges[2], edges[3]) if edges else None
        # Relative paths are relative to the list, wherever the job is started.
        items.append(Item(str(path.parent / str(where)), target, box))
    return items


def _from_tar(path: Path) -> Iterator[Item]:
    """Samples of a WebDataset shard: files that share a name up to the first dot.

    Nothing is extracted: a picture is a place in the archive, and its name is only a name.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            key, sample = "", dict[str, tarfile.TarInfo]()
            for member in archive:
                if member.size < 0:  # the next header would lie before this one, for ever
                    raise tarfile.ReadError("a member of negative size")
                if not (member.isfile() or member.issym() or member.islnk()):
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                member_key = f"{folder}/{stem}"
                if member_key != key:
                    yield from _sample(archive, path, sample)
                    key, sample = member_key, {}
                sample[extension.lower()] = member
            yield from _sample(archive, path, sample)
            _check_end(archive)
    # What tarfile raises beside its own errors comes of numbers and names that no tar writer makes.
    except (
        tarfile.TarError,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        why = str(error) or type(error).__name__
        raise InputError(
            f"'{path}' is not an uncompressed tar archive, or it is damaged ({why})"
        ) from None


def _check_end(archive: tarfile.TarFile) -> None:
    """Refuse an archive that does not end in a block of zeros.

    tarfile takes a damaged header after the first for the end, and an archive that was cut short
    between two members too: what comes after would be lost without a word.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(
            f"at byte {archive.offset} there is neither a member nor the archive's end"
        )


def _sample(
    archive: tarfile.TarFile, path: Path, sample: dict[str, tarfile.TarInfo]
) -> Iterator[Item]:
    picture = next(
        (m for e, m in sample.items() if "." + e.rpartition(".")[2] in PICTURE_SUFFIXES), None
    )
    if picture is None:
        return
    target: int | str | None = None
    label = sample.get("cls")
    if label and _whole(label) and (file := archive.extractfile(label)) is not None:
        text = file.read(1000).decode("utf-8", "replace").strip()
        index = text.isdecimal() and len(text) <= MOST_DIGITS
        target = int(text) if index else text or None
    problem = ""
    if not _whole(picture):
        problem = "is a link or a sparse file in the archive: put the picture itself there"
    elif picture.size > MOST_MEMBER_BYTES:
        problem = f"has {picture.size} bytes, more than {MOST_MEMBER_BYTES}"
    place = (str(path), picture.offset_data, picture.size)
    yield Item(f"{path}/{picture.name}", target, None, place, problem=problem)


def _whole(member: tarfile.TarInfo) -> bool:
    """Whether the member's bytes lie in the archive in one piece, as they are."""
    return member.isfile() and not member.issparse()


def _read_member(archive: str, offset: int, size: int) -> bytes:
    with Path(archive).open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _refuse(problem: str) -> bytes:
    raise InputError(problem)
