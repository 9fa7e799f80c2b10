"""Which classes to explain: None, an index, a name, a list of them, or ``topN``."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.errors import InputError

_TOP = re.compile(r"top([1-9][0-9]{0,5})")


def resolve_targets(
    targets: Any, probabilities: NDArray[np.float32], class_names: Sequence[str]
) -> tuple[int, ...]:
    """Class indices for what the user gave.

    Parameters
    ----------
    targets : None (the likeliest class), an int, a class name, ``"topN"``, or a sequence of ints
        and names.
    probabilities : (C,) float32.
    class_names : C names.

    Raises
    ------
    InputError
        If a class does not exist, or a name fits several.
    """
    if targets is None:
        targets = "top1"
    if isinstance(targets, str) and (match := _TOP.fullmatch(targets)):
        count = int(match[1])
        if count > len(class_names):
            raise InputError(f"target {targets!r}: the model has only {len(class_names)} classes")
        order = np.argsort(-probabilities, kind="stable")
        return tuple(int(index) for index in order[:count])
    if isinstance(targets, str) or not isinstance(targets, Sequence | np.ndarray | set):
        return (_one(targets, class_names),)
    if len(targets) == 0:
        raise InputError("targets is empty: give None for the likeliest class, or name some")
    return tuple(_one(target, class_names) for target in targets)


def _one(target: Any, class_names: Sequence[str]) -> int:
    if isinstance(target, str):
        return _by_name(target, class_names)
    try:
        if isinstance(target, bool):
            raise TypeError
        index = operator.index(target)
    except TypeError:
        raise InputError(
            f"target {target!r} is a {type(target).__name__}: give a class index, a class name, "
            "a list of them, 'top5', or None"
        ) from None
    if not 0 <= index < len(class_names):
        raise InputError(
            f"target {index} does not exist: the model has classes 0 to {len(class_names) - 1}"
        )
    return index


def _by_name(name: str, class_names: Sequence[str]) -> int:
    wanted = name.strip().casefold()
    exact = [i for i, known in enumerate(class_names) if known.casefold() == wanted]
    found = exact or [
        i
        for i, known in enumerate(class_names)
        if wanted in (part.strip() for part in known.casefold().split(","))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        indices = ", ".join(map(str, found[:8]))
        raise InputError(f"several classes are called {name!r} ({indices}): give the index")
    close = difflib.get_close_matches(wanted, [c.casefold() for c in class_names], n=3)
    hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    raise InputError(f"the model has no class called {name!r}{hint}")
