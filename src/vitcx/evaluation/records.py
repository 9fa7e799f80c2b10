"""Measured lines kept in a file as they come, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitcx.runtime.errors import InputError

Record = dict[str, Any]


class Records:
    """Lines of JSON, each with a unique ``key``; one line is written whole after each measurement.

    Parameters
    ----------
    path : of the file, made if it is not there; None keeps the lines in memory alone.
    context : what all lines depend on (model, steps and so on). A file of another context is
        refused: its figures would be mixed with others that mean something else.
    """

    def __init__(self, path: Path | None, context: Record) -> None:
        self._path = path
        self._lines: dict[str, Record] = {}
        head = json.dumps({"context": context}, sort_keys=True, ensure_ascii=False)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or not path.read_text(encoding="utf-8").strip():
            path.write_text(head + "\n", encoding="utf-8")
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines[0].rstrip("\n") != head:
            raise InputError(
                f"'{path}' was measured with other settings: choose another folder, or remove it "
                "to measure afresh"
            )
        whole = [line for line in lines[1:] if line.endswith("\n")]
        for line in whole:
            record = json.loads(line)
            self._lines[record["key"]] = record
        if len(whole) + 1 < len(lines):  # stopped in the middle of a line
            path.write_text("".join([lines[0], *whole]), encoding="utf-8")

    def __contains__(self, key: str) -> bool:
        return key in self._lines

    def __iter__(self) -> Iterator[Record]:
        return iter(self._lines.values())

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, key: str, **values: Any) -> Record:
        """Keep one line."""
        record = {"key": key, **values}
        self._lines[key] = record
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        return record
