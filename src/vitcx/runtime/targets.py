"""Which classes to explain, and what a word means as a target.

One rule holds wherever a target is written: on the command line, in a list of a data set, in a
request to the server, in Python. A number (an ``int``) is an index. A word is, in this order,

1. the name of a class, if it is exactly that (letter case and spaces around it do not count),
2. ``topN``: the N likeliest classes,
3. an index, if it is made of digits (``3``; ``3.0``, as tables write it), or is ``index:3``,
4. one of the synonyms of a class whose name lists several ("tabby, tabby cat").

So ``3`` is the class with index 3, unless a class is called "3"; ``index:3`` is always an index.
"""

from __future__ import annotations

import difflib
import functools
import math
import operator
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.errors import InputError

# What `resolve_targets` takes.
Targets: TypeAlias = (
    SupportsIndex | str | Sequence[SupportsIndex | str] | NDArray[np.integer[Any]] | None
)
_TOP = re.compile(r"top([1-9][0-9]{0,5})")
# Python refuses to read numbers of thousands of digits; no model has a class beyond 18.
_INDEX = re.compile(r"(?:index:\s*)?([0-9]{1,18})(?:\.0{1,18})?")


def resolve_targets(
    targets: Any, probabilities: NDArray[np.float32], class_names: Sequence[str]
) -> tuple[int, ...]:
    """Class indices for what the user gave.

    Parameters
    ----------
    targets : None (the likeliest class), an int (an index), a word (see the module's rule), or a
        sequence of ints and words.
    probabilities : (C,) float32.
    class_names : C names.

    Raises
    ------
    InputError
        If a class does not exist, or a name fits several.
    """
    names = tuple(class_names)
    if targets is None:
        return _likeliest(1, probabilities)
    if isinstance(targets, str):
        return _by_word(targets, probabilities, names)
    if not _are_several(targets):
        return (_by_index(targets, names),)
    if len(targets) == 0:
        raise InputError("targets is empty: give None for the likeliest class, or name some")
    found: list[int] = []
    for target in targets:
        if isinstance(target, str):
            found += _by_word(target, probabilities, names)
        else:
            found.append(_by_index(target, names))
    return tuple(found)


def count_targets(targets: Any) -> int:
    """How many classes targets can name at most, whatever the model is: a bound to check first."""
    if isinstance(targets, str):
        top = _TOP.fullmatch(_folded(targets))
        return int(top[1]) if top else 1
    if _are_several(targets):
        return sum(map(count_targets, targets))
    return 1


def with_against(targets: Any, against: Any) -> list[Any]:
    """`targets` with the class that they are held against as the last: see `Explanation.minus`.

    Parameters
    ----------
    targets : as `resolve_targets` takes them; None is the likeliest class.
    against : an index or a word.

    Raises
    ------
    InputError
        If `against` is not one class.
    """
    listed = _are_several(against) and not isinstance(against, str)
    if listed or count_targets(against) != 1:
        raise InputError(f"against is {against!r:.100}, expected one class: its name or index")
    several = _are_several(targets) and not isinstance(targets, str)
    return [*(targets if several else ["top1" if targets is None else targets]), against]


def read_target(cell: Any) -> int | str | None:
    """A target out of a table, whose columns may hold numbers as floats and gaps as NaN.

    Parameters
    ----------
    cell : text, a number, or None.

    Returns
    -------
    an index, a word as `resolve_targets` takes it, or None for a gap.

    Raises
    ------
    InputError
        If it is none of these; the sentence does not say where the cell is.
    """
    if isinstance(cell, str):
        return cell.strip() or None
    if cell is None or (isinstance(cell, float | np.floating) and math.isnan(cell)):
        return None
    if not isinstance(cell, bool | np.bool_):
        if isinstance(cell, float | np.floating) and math.isfinite(cell) and cell % 1 == 0:
            return int(cell)
        try:
            return operator.index(cell)
        except TypeError:
            pass
    raise InputError(f"{cell!r:.100} is neither a class index nor a class name")


def _are_several(targets: Any) -> bool:
    if isinstance(targets, np.ndarray):
        return targets.ndim > 0
    return isinstance(targets, Sequence | set)


def _likeliest(count: int, probabilities: NDArray[np.float32]) -> tuple[int, ...]:
    order = np.argsort(-probabilities, kind="stable")
    return tuple(int(index) for index in order[:count])


def _by_index(target: Any, names: tuple[str, ...]) -> int:
    try:
        if isinstance(target, bool):
            raise TypeError
        index = operator.index(target)
    except TypeError:
        raise InputError(
            f"target {target!r:.100} is a {type(target).__name__}: give a class index, a class "
            "name, a list of them, 'top5', or None"
        ) from None
    if not 0 <= index < len(names):
        raise InputError(
            f"target {index} does not exist: the model has classes 0 to {len(names) - 1}"
        )
    return index


def _by_word(
    word: str, probabilities: NDArray[np.float32], names: tuple[str, ...]
) -> tuple[int, ...]:
    wanted = _folded(word)
    whole, parts = _places(names)
    if found := whole.get(wanted):
        return (_only(word, found),)
    if top := _TOP.fullmatch(wanted):
        count = int(top[1])
        if count > len(names):
            raise InputError(f"target {word!r}: the model has only {len(names)} classes")
        return _likeliest(count, probabilities)
    if number := _INDEX.fullmatch(wanted):
        return (_by_index(int(number[1]), names),)
    if found := parts.get(wanted):
        return (_only(word, found),)
    close = difflib.get_close_matches(wanted, whole, n=3) if len(wanted) <= 100 else []
    hint = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    raise InputError(f"the model has no class called {word!r:.100}{hint}")


def _only(word: str, found: Sequence[int]) -> int:
    if len(found) == 1:
        return found[0]
    indices = ", ".join(map(str, found[:8]))
    raise InputError(
        f"several classes are called {word!r} ({indices}): give the index, index:{found[0]}"
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


@functools.lru_cache(maxsize=8)
def _places(
    names: tuple[str, ...],
) -> tuple[Mapping[str, Sequence[int]], Mapping[str, Sequence[int]]]:
    """Indices by whole name, and by each synonym of a name that lists several."""
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        folded = _folded(name)
        whole.setdefault(folded, []).append(index)
        for part in {part.strip() for part in folded.split(",")}:
            parts.setdefault(part, []).append(index)
    return whole, parts
