"""The files that an ONNX graph keeps weights in, read from the graph without the module onnx.

Only the few fields of the format that lead there are looked at (onnx.proto3); all others are passed
over by their length, so that a graph of gigabytes is read in milliseconds.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vitcx.runtime.errors import BundleError

# Message -> number of a field -> the message in it. What is not here is passed over.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _ENTRY = range(8)
_FIELDS = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
}
_KEY, _VALUE = 1, 2  # of an entry, such as "location": "weights.data"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """The names of the files, as the graph at `path` gives them.

    Raises
    ------
    BundleError
        It is not an ONNX graph, or cannot be read.
    """
    found: set[str] = set()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            waiting = [(_MODEL, 0, len(data))]
            while waiting:
                message, start, end = waiting.pop()
                if message == _ENTRY:
                    key, value = _entry(data, start, end)
                    if key == b"location":
                        name = value.decode("utf-8", "backslashreplace")
                        found.add(PurePosixPath(name).as_posix())
                    continue
                inside = _FIELDS[message]
                for field, begin, stop in _fields(data, start, end):
                    if field in inside:
                        waiting.append((inside[field], begin, stop))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise BundleError(f"'{path}' is not an ONNX graph that can be read: {error}") from None
    return found


def _entry(data: mmap.mmap, start: int, end: int) -> tuple[bytes, bytes]:
    parts = {field: data[begin:stop] for field, begin, stop in _fields(data, start, end)}
    return parts.get(_KEY, b""), parts.get(_VALUE, b"")


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field of variable length in a message; `ValueError` if it is
    not one.
    """
    while start < end:
        tag, start = _varint(data, start, end)
        kind = tag & 7
        if kind == _VARINT:
            _, start = _varint(data, start, end)
        elif kind == _BYTES:
            length, start = _varint(data, start, end)
            if length > end - start:
                raise ValueError("a part of it is cut off")
            yield tag >> 3, start, start + length
            start += length
        elif kind in (_FIXED64, _FIXED32):
            start += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"it has a part of the unknown kind {kind}")
    if start > end:
        raise ValueError("a part of it is cut off")


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    value = 0
    for place in range(start, min(end, start + 10)):
        byte = data[place]
        value |= (byte & 0x7F) << 7 * (place - start)
        if byte < 0x80:
            return value, place + 1
    raise ValueError("a number in it does not end")
