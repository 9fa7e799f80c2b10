"""A method with settings, in one word: ``vit-cx:estimator=fast,distance_threshold=0.07``.

A preset's name stands for its settings, and takes others after it: ``balanced:seed=1``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitcx.runtime.errors import InputError
from vitcx.runtime.method.registry import METHODS
from vitcx.runtime.presets import PRESETS
from vitcx.runtime.settings import Choice, Rule, Switch, Whole, setting_rules

# A map of random numbers: what insertion minus deletion is worth when nothing is known.
RANDOM_ORDER = "random-order"


def parse_variant(text: str) -> dict[str, Any]:
    """Keyword arguments of `Explainer.explain` for a variant.

    Raises
    ------
    InputError
        For an unknown method, preset or setting, or a value of the wrong type.
    """
    name, _, rest = text.partition(":")
    if name in METHODS:
        arguments: dict[str, Any] = {"method": name}
    elif name in PRESETS:
        arguments = {"preset": name}
    else:
        known = ", ".join((*METHODS, *PRESETS, RANDOM_ORDER))
        raise InputError(f"there is no method or preset {name!r}: give one of {known}")
    rules = setting_rules()
    for part in filter(None, rest.split(",")):
        setting, equals, value = part.partition("=")
        if setting not in rules or setting in arguments or not equals:
            known = ", ".join(sorted(rules.keys() - arguments.keys()))
            raise InputError(f"{part!r} in {text!r}: write setting=value, a setting of {known}")
        arguments[setting] = _value(text, setting, value, rules)
    return arguments


def _value(text: str, setting: str, value: str, rules: Mapping[str, Rule]) -> Any:
    rule = rules[setting]
    if isinstance(rule, Choice):
        return rule.accept(setting, value)
    try:
        if isinstance(rule, Switch):
            return {"true": True, "false": False}[value.lower()]
        return rule.accept(setting, int(value) if isinstance(rule, Whole) else float(value))
    except (KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        wanted = "true or false" if isinstance(rule, Switch) else "a number"
        raise InputError(f"{value!r} in {text!r}: give {wanted}") from None
