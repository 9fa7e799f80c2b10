"""JSON from a client, read so that no text of the allowed size costs much time or memory.

Whole bodies are read into typed structures whose open-ended parts stay raw text (`msgspec.Raw`);
`small` reads those, once their length is known. Numbers of a tensor are read in pieces, straight
into an array. A key that stands twice in an object is refused: programs differ in which of the two
they take, and a proxy that checks one lets the other through. Nothing here may run on the event
loop.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.errors import InputError
from vitcx.runtime.json_objects import refuse_repeated

# Targets, settings, shapes: names of classes may be long, and there may be a hundred of them.
SMALL_BYTES = 64 << 10
# Parsing a piece holds the interpreter's lock: a few milliseconds.
_PIECE_BYTES = 256 << 10
_IN_NUMBERS = b"0123456789+-.eE"
_SPACE = b" \t\r\n"
# Of one object in a request: the protocols have a handful.
_MOST_KEYS = 64
# Of objects within objects; each level costs another reading.
_KEY_LEVELS = 2
_T = TypeVar("_T")


def read(data: bytes | bytearray | memoryview, kind: type[_T], what: str) -> _T:
    """Read a JSON text as a `msgspec.Struct`.

    Parameters
    ----------
    data : the text, UTF-8.
    kind : its type.
    what : how an error calls it, "the body" for one.

    Raises
    ------
    InputError
        If it is not JSON, or not of the type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{what} does not fit: {_reason(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InputError(f"{what} is not JSON") from None


def refuse_repeated_keys(data: Any, what: str) -> None:
    """Refuse an object, or a short list of objects, in which a key stands twice.

    Objects that are values of an object are looked at too, for a few levels; what is in lists is
    not.

    Parameters
    ----------
    data : bytes of a JSON text that `read` has accepted.

    Raises
    ------
    InputError
        If it does, or if an object has more than `_MOST_KEYS` keys.
    """
    whole = memoryview(data)
    is_list = bytes(whole[:1]) == b"["
    for part in msgspec.json.decode(whole, type=list[msgspec.Raw]) if is_list else [whole]:
        _refuse_repeated(memoryview(part), what, _KEY_LEVELS)


def _refuse_repeated(text: memoryview, what: str, levels: int) -> None:
    seen: set[str] = set()

    def note(kind: type[_Key], name: str) -> _Key:
        if name in seen:
            raise _RepeatedKeyError(f"{what} has the key {name[:50]!r} twice: give it once")
        seen.add(name)
        if len(seen) > _MOST_KEYS:
            raise _RepeatedKeyError(f"{what} has more than {_MOST_KEYS} keys")
        return _Key()

    try:
        entries = msgspec.json.decode(text, type=dict[_Key, msgspec.Raw], dec_hook=note)
    except _RepeatedKeyError as error:
        raise InputError(str(error)) from None
    for raw in entries.values():
        value = memoryview(raw)
        if levels and bytes(value[:1]) == b"{":
            _refuse_repeated(value, what, levels - 1)


class _RepeatedKeyError(Exception):
    """Not a `ValueError`: of that, msgspec would make another."""


class _Key:
    """A key of an object, equal to no other."""


def small(data: bytes | bytearray | memoryview, what: str) -> Any:
    """Read a JSON text of at most `SMALL_BYTES` into plain Python values.

    Raises
    ------
    InputError
        If it is longer, not JSON, has a number beyond those of 64 bits or of a double, or a key
        twice in an object.
    """
    if len(data) > SMALL_BYTES:
        raise InputError(f"{what} has {len(data)} bytes of JSON: give at most {SMALL_BYTES}")
    value = read(data, Any, what)
    _refuse_large_numbers(value, what)
    if isinstance(value, list | dict):
        refuse_repeated(data, what)
    return value


def unset(raw: msgspec.Raw) -> bool:
    """Whether a field was left out, or given as null."""
    return len(raw) == 0 or bytes(raw) == b"null"


def _reason(error: Exception) -> str:
    """What msgspec says, in one short line; it quotes keys of the client's."""
    text = " ".join(str(error).replace("Object", "the object").split())
    return text if len(text) <= 200 else text[:200] + "..."


def _refuse_large_numbers(value: Any, what: str) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, int) and not -(1 << 63) <= item < 1 << 64:
            raise InputError(f"{what} has a whole number of more than 64 bits")


def numbers(raw: bytes | memoryview, shape: list[int], what: str) -> NDArray[np.float32]:
    """An array of float32 from the text of its numbers: flat, or nested as its shape is.

    Parameters
    ----------
    raw : a JSON array that `read` has accepted.
    shape : of the result.
    what : how an error calls it.

    Raises
    ------
    InputError
        If there are other values than numbers, or not as many as the shape holds.
    """
    count = math.prod(shape)
    text = bytes(raw).translate(None, _SPACE)
    misfit = InputError(f"{what} do not fill their shape {shape} with numbers, flat or nested")
    if len(text) < 2 * count + 1 or not text.startswith(b"["):
        raise misfit
    skeleton = text.translate(None, _IN_NUMBERS)
    if skeleton != b"[" + b"," * (count - 1) + b"]" and skeleton != _nested(shape):
        raise misfit
    text = text.translate(None, b"[]")
    values = np.empty(count, dtype=np.float32)
    done = 0
    for start, end in pairwise(_cuts(text)):
        try:
            part = b"[" + text[start:end].removesuffix(b",") + b"]"
            piece = msgspec.json.decode(part, type=list[float])
        except msgspec.MsgspecError:
            raise InputError(f"{what} have a number that no double holds") from None
        with np.errstate(over="ignore"):  # the caller asks for finite values
            values[done : done + len(piece)] = piece
        done += len(piece)
        del piece
    return values.reshape(shape)


def _cuts(text: bytes) -> list[int]:
    """Both ends, and places behind commas about `_PIECE_BYTES` apart."""
    cuts = [0]
    while len(text) - cuts[-1] > _PIECE_BYTES:
        comma = text.find(b",", cuts[-1] + _PIECE_BYTES)
        if comma < 0:
            break
        cuts.append(comma + 1)
    return [*cuts, len(text)]


def _nested(shape: list[int]) -> bytes:
    """The brackets and commas of a nested array."""
    text = b""
    for size in reversed(shape):
        text = b"[" + b",".join([text] * size) + b"]"
    return text
