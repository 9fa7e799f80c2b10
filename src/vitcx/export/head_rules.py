"""Which head fits what a model or a graph gives: the rules, without PyTorch."""

from __future__ import annotations

from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import HEADS


def check_head(asked: str | None) -> None:
    """`InputError` for a head that there is not; None leaves the choice."""
    if asked is not None and asked not in HEADS:
        raise InputError(f"head is {asked!r}, expected one of {', '.join(HEADS)}")


def refuse_misfit(name: str, ending: str | None, count: int, *, what: str) -> None:
    """Refuse a head that cannot be right.

    Parameters
    ----------
    name : of the head.
    ending : the operation that makes the outputs: "softmax", "sigmoid" or another.
    count : how many numbers there are for a picture.
    what : gives them: "model" or "graph".
    """
    if name == "softmax" and count == 1:
        raise InputError(
            f"the {what} gives one number, and a softmax over one is always 1: say what it is, "
            "--head binary (one logit of yes or no) or --head regression (a value)"
        )
    if name == "softmax" and ending == "sigmoid":
        raise InputError(
            f"the {what} ends in a sigmoid, so its labels are independent and a softmax on top "
            "would be wrong: give --head sigmoid, or leave it out"
        )
    if name in ("sigmoid", "binary") and ending == "softmax":
        raise InputError(
            f"the {what} ends in a softmax, so its outputs are no logits for the head {name}: "
            "give --head softmax, or leave it out"
        )
    if name == "binary" and count != 1:
        raise InputError(
            f"the head binary is for one logit, and the {what} gives {count}: give --head softmax "
            "if one of them is true, or sigmoid if each may be"
        )
