"""Lists of pictures: CSV and Parquet tables with paths, and, if wanted, classes and boxes."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitcx.runtime.errors import InputError, MissingExtraError
from vitcx.runtime.plain_files import open_plain
from vitcx.runtime.targets import read_target
from vitcx.sources.items import Box, Item

PATH_COLUMNS = ("path", "file", "image", "filename")
TARGET_COLUMNS = ("target", "class_index", "label", "class")
BOX_COLUMNS = ("x0", "y0", "x1", "y1")
_KNOWN = {*PATH_COLUMNS, *TARGET_COLUMNS, *BOX_COLUMNS}

Row = Mapping[str, Any]


def items_of_list(path: Path) -> list[Item]:
    """The pictures of a .csv or .parquet list, a row each.

    Raises
    ------
    InputError
        If it cannot be read, has no column of paths, or a row has none.
    """
    if path.suffix.lower() == ".parquet":
        items = list(_items(_parquet_rows(path), path))
    else:
        with open_csv(path) as (_, rows):
            items = list(_items((row for _, row in rows), path))
    if not items:
        raise InputError(f"the list '{path}' is empty")
    return items


@contextlib.contextmanager
def open_csv(path: Path) -> Iterator[tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]]:
    """A CSV file in UTF-8, with or without a byte order mark: its columns; its lines and rows.

    Raises
    ------
    InputError
        If the file is missing or no such table; also while its rows are read.
    """
    try:
        with open_plain(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            yield list(reader.fieldnames or ()), ((reader.line_num, row) for row in reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' is not a CSV file that can be read ({error})") from None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("a Parquet list", "pyarrow", "dataset") from None
    try:
        with open_plain(path) as file:
            table = parquet.ParquetFile(file)
            # Alone: beside them, such tables often hold the pictures themselves.
            names = [name for name in table.schema_arrow.names if name in _KNOWN]
            if not names:
                yield dict.fromkeys(table.schema_arrow.names)
                return
            for batch in table.iter_batches(columns=names):
                yield from batch.to_pylist()
    # What pyarrow raises for values that Python has no type for is not its own exception.
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{path}' is not a Parquet file that can be read ({error})") from None


def _items(rows: Iterable[Row], path: Path) -> Iterator[Item]:
    path_column = target_column = None
    for number, row in enumerate(rows, start=1):
        if path_column is None:
            path_column, target_column = _columns(row, path)
        where = row[path_column]
        if where is None or where == "":
            raise InputError(f"row {number} of '{path}' has no {path_column}")
        if not isinstance(where, str):
            raise InputError(
                f"row {number} of '{path}', column {path_column}: {where!r:.100} is a "
                f"{type(where).__name__}: give the path of a picture file"
            )
        try:
            target = read_target(row[target_column]) if target_column else None
        except InputError as error:
            raise InputError(f"row {number} of '{path}', column {target_column}: {error}") from None
        # Relative paths are relative to the list, wherever the job is started.
        yield Item(str(path.parent / where), target, _box(row), name=where)


def _columns(row: Row, path: Path) -> tuple[str, str | None]:
    found = next((name for name in PATH_COLUMNS if name in row), None)
    if found is None:
        known = ", ".join(sorted(map(str, row)))
        raise InputError(
            f"the list '{path}' has the columns {known}: one of {', '.join(PATH_COLUMNS)} must say "
            "where the pictures are"
        )
    return found, next((name for name in TARGET_COLUMNS if name in row), None)


def _box(row: Row) -> Box | None:
    """The box of a row; a row may have none in a list where others have one."""
    try:
        x0, y0, x1, y1 = (float(row[name]) for name in BOX_COLUMNS)
    except (KeyError, TypeError, ValueError):
        return None
    # As programs write it that have numbers only.
    return (x0, y0, x1, y1) if all(map(math.isfinite, (x0, y0, x1, y1))) else None
