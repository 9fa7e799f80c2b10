"""A form of multipart/form-data: one file, `image`, and text fields. Not for the event loop."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vitcx.runtime.errors import InputError

MOST_PARTS = 21
MOST_FIELD_BYTES = 64 << 10
_MOST_HEADER_BYTES = 4 << 10
_PIECE_BYTES = 64 << 10


class _Parts:
    """Gathers parts: what the parser calls."""

    def __init__(self) -> None:
        self.image: bytearray | None = None
        self.fields: dict[str, bytearray] = {}
        self.complete = False
        self._count = 0
        self._header_bytes = 0
        self._name, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._into = bytearray()
        self._limit = 0

    def part_begin(self) -> None:
        self._count += 1
        if self._count > MOST_PARTS:
            raise InputError(f"the form has more than {MOST_PARTS} parts")
        self._headers, self._header_bytes = {}, 0

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += self._counted(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def _counted(self, piece: bytes) -> bytes:
        self._header_bytes += len(piece)
        if self._header_bytes > _MOST_HEADER_BYTES:
            raise InputError(f"a part of the form has more than {_MOST_HEADER_BYTES} header bytes")
        return piece

    def header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        try:
            name = options[b"name"].decode()
        except (KeyError, UnicodeDecodeError):
            raise InputError("a part of the form has no name in UTF-8") from None
        self._into = bytearray()
        known = name in self.fields or (name == "image" and self.image is not None)
        if known:
            raise InputError(f"the form has the field {name[:50]!r} more than once: give it once")
        if name == "image":
            if b"filename" not in options:
                raise InputError("the form's 'image' is text: send it as a file")
            self.image, self._limit = self._into, 0
        elif b"filename" in options:
            raise InputError(f"{name[:50]!r} is a file: give text")
        else:
            self.fields[name], self._limit = self._into, MOST_FIELD_BYTES

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._into += data[start:end]
        if self._limit and len(self._into) > self._limit:
            raise InputError(f"a text field of the form has more than {self._limit} bytes")

    def end(self) -> None:
        self.complete = True


def read_form(body: bytes | bytearray, content_type: str) -> tuple[bytes, dict[str, str]]:
    """The file `image` and the text fields of a form.

    Parameters
    ----------
    body : of the request.
    content_type : its header, with the boundary.

    Raises
    ------
    InputError
        If the form cannot be parsed, has no image, or has a field twice.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise InputError("the form has no boundary in its Content-Type")
    parts = _Parts()
    names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished")
    callbacks = {f"on_{name}": getattr(parts, name) for name in (*names, "part_data", "end")}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        for start in range(0, len(body), _PIECE_BYTES):
            parser.write(bytes(body[start : start + _PIECE_BYTES]))
        parser.finalize()
    except FormParserError:
        raise InputError("the form cannot be parsed: send a file 'image' and text fields") from None
    if not parts.complete:
        raise InputError("the form ends before its last boundary")
    if parts.image is None:
        raise InputError("the form has no file 'image'")
    try:
        fields = {name: data.decode() for name, data in parts.fields.items()}
    except UnicodeDecodeError:
        raise InputError("a text field of the form is not UTF-8") from None
    return bytes(parts.image), fields
