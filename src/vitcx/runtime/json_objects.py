"""JSON objects of others, in which no key may stand twice.

JSON leaves open what that means, and most readers take the last without a word: a manifest that a
person has looked at would not be the one that is used.
"""

from __future__ import annotations

import json
from typing import Any

from vitcx.runtime.errors import InputError


def read_json(text: str | bytes) -> Any:
    """`json.loads`, and an `InputError` where a key stands twice in an object."""
    return json.loads(text, object_pairs_hook=_once)


def refuse_repeated(text: bytes | bytearray | memoryview, what: str) -> None:
    """Refuse a JSON text in which a key stands twice in an object, at any depth.

    Parameters
    ----------
    text : it is JSON; numbers of any size do no harm.
    what : how the error calls it.

    Raises
    ------
    InputError
        If it does, or if the text is nested too deeply.
    """
    try:
        json.loads(bytes(text), object_pairs_hook=_once, parse_int=len, parse_float=len)
    except InputError as error:
        raise InputError(f"{what} {error}") from None
    except RecursionError:
        raise InputError(f"{what} is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InputError(f"has the key {name[:50]!r} twice: give it once")
            seen.add(name)
    return found
