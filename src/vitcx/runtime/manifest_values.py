"""Values of a manifest's JSON as the types that the manifest declares."""

from __future__ import annotations

import reprlib
import typing
from collections.abc import Sequence
from typing import Any

from vitcx.runtime.errors import BundleError

_MOST_NAMES = 5  # in a message
# A value of the file for a message: one line, and short however long the value is.
shown = reprlib.repr


def typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type the manifest declares for `name`, or a `BundleError`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in args:  # an optional entry
        return None if value is None else typed(name, value, args[0])
    if origin is tuple:
        if not isinstance(value, list):
            raise BundleError(f"the manifest's {name} is {shown(value)}, not a list")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise BundleError(f"the manifest's {name} has {len(value)} entries, not {len(args)}")
        return tuple(typed(name, item, args[0]) for item in value)
    if hint is str or hint is int:
        if type(value) is not hint:
            raise BundleError(f"the manifest's {name} is {shown(value)}, not {hint.__name__}")
        if isinstance(value, str) and not _is_text(value):
            raise BundleError(f"the manifest's {name} is {shown(value)}, which is not valid text")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BundleError(f"the manifest's {name} is {shown(value)}, not a number")
        try:
            return float(value)
        except OverflowError:
            raise BundleError(f"the manifest's {name} is too large a number") from None
    if not isinstance(value, dict):
        raise BundleError(f"the manifest's {name} is {shown(value)}, not an object")
    return {
        typed(name, key, str): typed(f"{name}.{shown_names([key])}", item, args[1])
        for key, item in value.items()
    }


def _is_text(value: str) -> bool:
    """Whether it holds no half of a surrogate pair, which nothing can write or print."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown_names(names: Sequence[str]) -> str:
    """Some names of the file for a message: few, short and printable."""
    few = [shown(name)[1:-1] for name in names[:_MOST_NAMES]]
    return ", ".join(few) + (", ..." if len(names) > _MOST_NAMES else "")
