"""What exporting a model and importing an ONNX file check and tell alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from vitcx.runtime.errors import InputError


def teller(logger: logging.Logger, report: Callable[[str], None] | None) -> Callable[[str], None]:
    """What tells each step to `logger`, and to `report` if there is one."""

    def say(step: str) -> None:
        logger.info("%s", step)
        if report is not None:
            report(step)

    return say


def check_references(references: Sequence[str | Path], head: str | None) -> None:
    """`InputError` for reference pictures that the head has no use for."""
    if references and head != "none":
        raise InputError("reference pictures go with the head none: give --head none as well")


def size_of(img_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(H, W) of a side, or of (H, W); `InputError` for what is no size."""
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise InputError(f"img_size is {img_size!r}, expected a positive side or (H, W)")
    return size
