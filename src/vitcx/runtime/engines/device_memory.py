"""Opening a session on a device whose memory may not hold the batch that was asked for.

The rows of a mask batch are independent: a smaller batch gives the same result, more slowly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from vitcx.kernels.errors import first_line
from vitcx.runtime.errors import EngineError

log = logging.getLogger("vitcx")
S = TypeVar("S")


def open_fitting(
    open: Callable[[int], S], batch_size: int, is_out_of_memory: Callable[[Exception], bool]
) -> S:
    """`open(batch_size)`, or of the largest half, quarter and so on that fits. Says so once.

    Parameters
    ----------
    open : must take all the memory that running a full batch needs, so that what opens also runs,
        and give all of it back before it raises.
    batch_size : to begin with, at least 1.
    is_out_of_memory : whether an error of `open` means that a smaller batch may fit.

    Raises
    ------
    EngineError
        Not even one row fits.
    Exception
        Whatever else `open` raises.
    """
    size = batch_size
    while True:
        try:
            opened = open(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise EngineError(
                    "the device's memory does not hold the model and one row of a mask batch: "
                    f"free some of it, or take another engine ({first_line(error)})"
                ) from error
            # The traceback holds the frames of the attempt, and with them what it allocated.
            error.__traceback__ = None
            size //= 2
            continue
        if size != batch_size:
            log.warning(
                "the device's memory does not hold a mask batch of %d rows: "
                "going on with %d, which gives the same result",
                batch_size,
                size,
            )
        return opened
