"""Files of class names as people have them: JSON, YAML, CSV, or one name a line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from vitcx.runtime.errors import InputError
from vitcx.runtime.json_objects import read_json

_YAML_ITEM = re.compile(r"\s*-\s+(.*)")
_YAML_PAIR = re.compile(r"\s*(['\"]?)(\d+)\1\s*:\s+(.*)")


def read_class_names(path: Path) -> tuple[str, ...]:
    """Names in the order of their classes.

    A JSON list; a JSON object of names by index (``id2label``, or a configuration that has it) or
    of indices by name (``class_to_idx``); ``.yaml``: a list, or names by index, alone or under
    ``names:``; ``.csv``: a name a row, or an index and a name; else one name a line (empty lines
    are left out).

    Raises
    ------
    InputError
        If the file cannot be read, is not UTF-8, or its names are not one for each index from 0.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from '{path}': {error}") from None
    suffix = path.suffix.lower()
    if text.lstrip().startswith(("[", "{")):
        try:
            content = read_json(text)
        except InputError as error:
            raise InputError(f"'{path}' {error}") from None
        except json.JSONDecodeError as error:
            raise InputError(f"'{path}' starts as JSON but is not one: {error}") from None
        names = _of_json(content)
    elif suffix in (".yaml", ".yml"):
        names = _of_yaml(text)
    elif suffix == ".csv":
        names = _of_csv(text)
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"'{path}' must hold names, one for each class from 0: a JSON list, an object as "
            "id2label or class_to_idx, YAML, CSV, or one name a line"
        )
    return tuple(names)


def _of_json(content: Any) -> list[Any] | None:
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        return None
    for key in ("id2label", "class_to_idx", "names", "classes"):
        if isinstance(content.get(key), dict | list):
            return _of_json(content[key])
    if content and all(type(value) is int for value in content.values()):
        return _ordered([(index, name) for name, index in content.items()])
    if all(str(key).isdecimal() for key in content):
        return _ordered([(int(key), name) for key, name in content.items()])
    return None


def _of_yaml(text: str) -> list[Any] | None:
    """A list or names by index, of text alone: no more of YAML is needed, and no parser."""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    if lines and re.fullmatch(r"\w+:\s*", lines[0]):
        lines = lines[1:]
    elif lines and (inline := re.fullmatch(r"\w+:\s*\[(.*)\]\s*", lines[0])) and len(lines) == 1:
        return [_unquoted(part) for part in next(csv.reader([inline[1]], skipinitialspace=True))]
    items = [_YAML_ITEM.fullmatch(line) for line in lines]
    if all(items):
        return [_unquoted(item[1]) for item in items if item]
    pairs = [_YAML_PAIR.fullmatch(line) for line in lines]
    if all(pairs):
        return _ordered([(int(pair[2]), _unquoted(pair[3])) for pair in pairs if pair])
    return None


def _of_csv(text: str) -> list[Any] | None:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(row)]
    if rows and len(rows[0]) >= 2 and not any(cell.isdecimal() for cell in rows[0]):
        rows = rows[1:]  # a header
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    for index, name in ((0, 1), (1, 0)):
        if all(len(row) >= 2 and row[index].isdecimal() for row in rows):
            return _ordered([(int(row[index]), row[name]) for row in rows])
    return None


def _ordered(pairs: list[tuple[int, Any]]) -> list[Any] | None:
    """Names by index; None unless the indices are 0, 1, ... each once."""
    names = dict(pairs)
    if len(names) != len(pairs) or sorted(names) != list(range(len(pairs))):
        return None
    return [names[index] for index in range(len(pairs))]


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
