"""The promise of an explanation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from vitcx.runtime.explanation import Explanation


class Ticket(Future[Explanation]):
    """A picture on its way. `cancel` drops its rows.

    Attributes
    ----------
    engine_failed : whether the error is the engine's, and so no fault of the picture.
    on_cancel : called once, if the picture is cancelled before it is done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.engine_failed = False
        self.on_cancel: Callable[[], None] | None = None
        self._deciding = threading.Lock()
        self._decided = False

    def cancel(self) -> bool:
        """Drop the picture's rows. False if it is done already."""
        if not super().cancel():
            return False
        self.claim()
        # Taken out here and on completion: it refers back to the ticket, and such a ring would
        # keep the picture until the garbage collector's next round.
        drop, self.on_cancel = self.on_cancel, None
        if drop is not None:
            drop()
        return True

    def claim(self) -> bool:
        """Whether the caller is to give the answer: the ticket has none and is not cancelled.

        Those who wait for a cancelled ticket are told by the first call. `Future` has each of the
        two be done once only.
        """
        with self._deciding:
            if self._decided:
                return False
            self._decided = True
            return self.set_running_or_notify_cancel()
