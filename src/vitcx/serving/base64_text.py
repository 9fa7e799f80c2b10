"""Base64 as programs and browsers write it."""

from __future__ import annotations

import base64
import binascii

from vitcx.runtime.errors import InputError

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def read_base64(text: str, what: str) -> bytes:
    """The bytes of a base64 text.

    Parameters
    ----------
    text : plain, URL-safe, with line breaks, or a data URL (``data:image/png;base64,...``); the
        padding may be missing.
    what : how an error calls it.

    Raises
    ------
    InputError
        If it is none of these.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.rstrip().lower().endswith(";base64"):
            raise InputError(f"{what} is a data URL without ';base64,'")
    try:
        data = text.encode("ascii").translate(_URL_SAFE, b" \t\r\n")
    except UnicodeEncodeError:
        raise InputError(f"{what} is not base64: it has letters beyond ASCII") from None
    data += b"=" * (-len(data) % 4)
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise InputError(f"{what} is not base64 ({error})") from None
