"""One source of pictures for every command.

A source is listed once, in an order that is a function of its contents alone. The pictures
themselves are read when their turn comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures.formats import PICTURE_SUFFIXES
from vitcx.sources.archives import items_of_archive
from vitcx.sources.folders import is_picture, matches_of, pictures_below
from vitcx.sources.items import Item
from vitcx.sources.lists import items_of_list


def list_all(sources: Iterable[str | Path]) -> list[Item]:
    """The pictures of some sources, one after the other; a file by its name is a picture."""
    return [item for source in sources for item in list_items(source, named=True)]


def list_items(
    source: str | Path, apart_from: Path | None = None, *, named: bool = False
) -> list[Item]:
    """The pictures of a source, in order.

    Parameters
    ----------
    source : a folder (all pictures below it), a glob pattern (``**`` for any depth), a .csv or
        .parquet list with a column ``path`` (or file, image, filename) and, if wanted, ``target``
        and ``x0, y0, x1, y1``, one or more WebDataset .tar shards (a pattern may name many), or a
        picture.
    apart_from : a folder that a search passes over: a job's own overlays are no new pictures.
    named : take any other name for a picture's, which is refused when its turn comes: one that is
        missing or misnamed then costs itself alone.

    Raises
    ------
    InputError
        If there is nothing there, or a list cannot be read.
    """
    path = Path(source)
    items: list[Item] | None
    try:
        if path.is_dir():
            found = pictures_below(path, apart_from)
            items = [Item(str(p), name=p.relative_to(path).as_posix()) for p in found]
        elif path.is_file():
            items = _of_file(path, named=named)
        else:
            items = _of_pattern(str(source), apart_from)
            if items is None and named:
                return [Item(str(source), name=path.name)]
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(source)!r:.300} is not a file name ({error})") from None
    if items is None:
        raise InputError(f"no folder, file or pattern '{source}' matches anything")
    if not items:
        raise InputError(
            f"'{source}' holds no pictures: looked for {', '.join(sorted(PICTURE_SUFFIXES))}"
        )
    return items


def _of_pattern(pattern: str, apart_from: Path | None) -> list[Item] | None:
    """None if nothing fits; what fits and is neither a picture nor an archive does not count."""
    found = matches_of(pattern, apart_from)
    if not found:
        return None
    return [
        item
        for path in found
        if is_picture(path.name) or path.suffix.lower() == ".tar"
        for item in _of_file(path, named=False)
    ]


def _of_file(path: Path, *, named: bool) -> list[Item]:
    kind = path.suffix.lower()
    if kind == ".tar":
        return list(items_of_archive(path))
    if kind in (".csv", ".parquet"):
        return items_of_list(path)
    if named or is_picture(path.name):
        return [Item(str(path), name=path.name)]
    raise InputError(
        f"'{path}' is neither a picture nor a list of them: give a folder, a pattern, .csv, "
        ".parquet or .tar"
    )
