"""A method with settings, in one word: ``vit-cx:estimator=fast,distance_threshold=0.07``."""

from __future__ import annotations

import types
import typing
from typing import Any

from vitcx.runtime.errors import InputError
from vitcx.runtime.method.methods import METHOD_NAMES
from vitcx.runtime.settings import Settings

# A map of random numbers: what insertion minus deletion is worth when nothing is known.
RANDOM_ORDER = "random-order"


def parse_variant(text: str) -> dict[str, Any]:
    """Keyword arguments of `Explainer.explain` for a variant.

    Raises
    ------
    InputError
        For an unknown method or setting, or a value of the wrong type.
    """
    method, _, rest = text.partition(":")
    if method not in METHOD_NAMES:
        known = ", ".join((*METHOD_NAMES, RANDOM_ORDER))
        raise InputError(f"there is no method {method!r}: give one of {known}")
    hints = typing.get_type_hints(Settings)
    arguments: dict[str, Any] = {"method": method}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if name not in hints or name == "method" or not equals:
            known = ", ".join(sorted(hints.keys() - {"method"}))
            raise InputError(f"{part!r} in {text!r}: write setting=value, a setting of {known}")
        arguments[name] = _value(text, value, hints[name])
    return arguments


def _value(text: str, value: str, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    try:
        if bool in kinds:
            return {"true": True, "false": False}[value.lower()]
        if int in kinds:
            return int(value)
        if float in kinds:
            return float(value)
    except (KeyError, ValueError):
        wanted = "true or false" if bool in kinds else "a number"
        raise InputError(f"{value!r} in {text!r}: give {wanted}") from None
    return value
