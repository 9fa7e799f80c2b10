"""Whose rows are next: by arrival, or by turns.

`Arrivals` is for a data set, `Turns` for pictures that are served as they come. By turns short
pictures go before long ones, so that one with thousands of rows holds nobody up; one batch in a few
is for a long one all the same. Among equals clients take turns by rows: the one that has had the
fewest is next. A client's own pictures go in the order of their arrival, and its long ones take
turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

from vitcx.runtime.pipeline.scoring import Scoring


@dataclass
class Arrivals:
    """The pictures that wait, in the order in which they came."""

    # All of a data set is waited for: batches are as full as they can be.
    prefers_full: ClassVar[bool] = True
    _waiting: dict[Scoring, None] = field(default_factory=dict, init=False)

    def __contains__(self, scoring: Scoring) -> bool:
        return scoring in self._waiting

    def __iter__(self) -> Iterator[Scoring]:
        return iter(self._waiting)

    def add(self, scoring: Scoring, client: str) -> None:
        """A picture comes; whose it is does not matter."""
        self._waiting[scoring] = None

    def remove(self, scoring: Scoring) -> None:
        """A picture has no rows left, or is not wanted any more."""
        del self._waiting[scoring]

    def in_order(self) -> list[Scoring]:
        """Every picture that waits, the one whose turn it is first."""
        return list(self._waiting)

    def served(self, rows: Iterable[Scoring]) -> None:
        """A batch is packed: the order stays."""

    def is_long(self, scoring: Scoring) -> bool:
        """No picture waits for short ones."""
        return False


@dataclass
class _Place:
    """A picture's, in the line.

    Attributes
    ----------
    number : of its arrival, or of its last turn if it is long.
    """

    client: str
    number: int


@dataclass
class Turns:
    """The pictures that wait, by turns.

    Parameters
    ----------
    long_rows : a picture that has had so many rows is long.
    patience : batches without a long picture after which one that waits has a turn.
    """

    # What is rare must not wait for what is always there.
    prefers_full: ClassVar[bool] = False
    long_rows: int
    patience: int
    _places: dict[Scoring, _Place] = field(default_factory=dict, init=False)
    # Rows that each client with something waiting has had, beside what others had when it came.
    _rows: dict[str, int] = field(default_factory=dict, init=False)
    _numbers: count[int] = field(default_factory=count, init=False)
    _overtaken: int = field(default=0, init=False)

    def __contains__(self, scoring: Scoring) -> bool:
        return scoring in self._places

    def __iter__(self) -> Iterator[Scoring]:
        return iter(self._places)

    def add(self, scoring: Scoring, client: str) -> None:
        """A client's picture comes."""
        self._rows.setdefault(client, min(self._rows.values(), default=0))
        self._places[scoring] = _Place(client, next(self._numbers))

    def remove(self, scoring: Scoring) -> None:
        """A picture has no rows left, or is not wanted any more."""
        client = self._places.pop(scoring).client
        if all(place.client != client for place in self._places.values()):
            del self._rows[client]

    def in_order(self) -> list[Scoring]:
        """Every picture that waits, the one whose turn it is first."""
        overdue = self._overtaken >= self.patience

        def key(scoring: Scoring) -> tuple[bool, int, int]:
            place = self._places[scoring]
            return self.is_long(scoring) != overdue, self._rows[place.client], place.number

        return sorted(self._places, key=key)

    def served(self, rows: Iterable[Scoring]) -> None:
        """A batch is packed. `rows` names the picture of each; what is complete is still here."""
        served = Counter(rows)
        for scoring, taken in served.items():
            place = self._places[scoring]
            self._rows[place.client] += taken
            if self.is_long(scoring):
                place.number = next(self._numbers)
        waits = any(self.is_long(scoring) for scoring in self._places)
        had_turn = any(self.is_long(scoring) for scoring in served)
        self._overtaken = self._overtaken + 1 if waits and not had_turn else 0

    def is_long(self, scoring: Scoring) -> bool:
        """Whether it has had so many rows that it waits for short ones."""
        return scoring.next_row >= self.long_rows
