"""What is to be done next: the pictures on their way, and which of them has its turn.

Knows the order of work (see `pipeline`) and does none of it; its methods are called with the
pipeline's lock held.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from vitcx.runtime.engines.session import Scores, Session
from vitcx.runtime.pipeline.packing import PackedBatch, Packer, Scoring
from vitcx.runtime.pipeline.ticket import Ticket


class Place(IntEnum):
    """How far a picture has come."""

    WAITING, PREPARING, PREPARED, ENCODING, PLANNED = range(5)


@dataclass(eq=False)
class Entry:
    """A picture on its way.

    Attributes
    ----------
    work : whatever `Stages.prepare` returned.
    scoring : its rows, once its masks are known.
    held : counted among the pictures in memory.
    closed : done or cancelled: whoever has it at hand lets it go.
    settled : its ticket has its answer, or wants none.
    """

    request: Any
    index: int
    ticket: Ticket
    place: Place = Place.WAITING
    work: Any = None
    scoring: Scoring | None = None
    held: bool = False
    closed: bool = False
    settled: bool = False


@dataclass(frozen=True)
class Prepare:
    """Read a picture."""

    entry: Entry


@dataclass(frozen=True)
class Encode:
    """Encode pictures in one call of the engine, and find their masks."""

    group: list[Entry]


@dataclass(frozen=True)
class Score:
    """Score a batch of rows."""

    packed: PackedBatch


class Agenda:
    """The pictures on their way.

    Parameters
    ----------
    session : whose batches are filled.
    limit : the most pictures held at a time.
    scorers : the most batches that are with the engine at a time.
    encode_size : the most pictures of one encoding.
    in_order : see `pipeline`.

    Attributes
    ----------
    open : every picture whose rows are not all scored, by its index, in order of submission.
    line : of those, the ones whose rows the packer does not have yet.
    ended : no more is coming.
    """

    def __init__(
        self, session: Session, *, limit: int, scorers: int, encode_size: int, in_order: bool
    ) -> None:
        self.limit = limit
        self.packer = Packer(session)
        self.open: dict[int, Entry] = {}
        self.line: deque[Entry] = deque()
        self._by_scoring: dict[Scoring, Entry] = {}  # of `open`, the ones whose rows the packer has
        self._held = 0  # pictures in memory: from preparation to result
        self._scoring = 0
        self._encoding = 0
        self.ended = False
        self._submitted = 0
        self._scorers = scorers
        self._encode_size = min(encode_size, limit)
        self._in_order = in_order

    def add(self, request: Any, ticket: Ticket) -> Entry:
        """Put a picture at the end of the line."""
        entry = Entry(request, self._submitted, ticket)
        self._submitted += 1
        self.open[entry.index] = entry
        self.line.append(entry)
        return entry

    def next_job(self) -> Prepare | Encode | Score | None:
        """The most urgent thing that can be done now; it is then in hand."""
        free = self._scoring < self._scorers
        if free and self.packer.is_full:
            return self._take_batch()
        stalled = self._stalled()
        if group := self._take_group(stalled):
            return Encode(group)
        if self._held < self.limit:
            for entry in self.line:
                if entry.place == Place.WAITING:
                    entry.place = Place.PREPARING
                    entry.held = True
                    self._held += 1
                    return Prepare(entry)
        if free and stalled and self.packer.pending_rows:
            return self._take_batch()
        return None

    def encoded(self) -> list[Entry]:
        """An encoding is over: planned rows can be scored. Returns the pictures that have none."""
        self._encoding -= 1
        without_rows: list[Entry] = []
        kept: deque[Entry] = deque()
        while self.line:
            entry = self.line.popleft()
            if entry.scoring is None:
                kept.append(entry)
                if self._in_order:
                    break
            elif entry.scoring.done:
                del self.open[entry.index]
                without_rows.append(entry)
            else:
                self._by_scoring[entry.scoring] = entry
                self.packer.add(entry.scoring)
        self.line = kept + self.line
        return without_rows

    def scored(self, packed: PackedBatch, scores: Scores) -> list[Entry]:
        """A batch is scored: its rows get their scores. Returns the pictures that are complete."""
        self._scoring -= 1
        # A cancelled picture's rows are scored if they were packed already, and belong to none.
        finished = [
            self._by_scoring.pop(scoring)
            for scoring in packed.deliver(scores)
            if scoring in self._by_scoring
        ]
        for entry in finished:
            del self.open[entry.index]
        return finished

    def lost(self, packed: PackedBatch) -> list[Entry]:
        """A batch failed. Returns the pictures that had a row in it."""
        self._scoring -= 1
        return [
            self._by_scoring[scoring] for scoring in packed.scorings if scoring in self._by_scoring
        ]

    def release(self, entry: Entry) -> None:
        """Take a picture out of every queue and give its place free."""
        entry.closed = True
        self.open.pop(entry.index, None)
        if entry in self.line:
            self.line.remove(entry)
        if entry.scoring is not None:
            self.packer.cancel(entry.scoring)
            self._by_scoring.pop(entry.scoring, None)
        if entry.held:
            entry.held = False
            self._held -= 1

    def _take_batch(self) -> Score:
        self._scoring += 1
        return Score(self.packer.pack())

    def _stalled(self) -> bool:
        """Whether no full batch and no full encoding can come of waiting."""
        if self._scoring:
            return False
        if not self._in_order:
            return self._encoding == 0
        if any(entry.place != Place.PREPARED for entry in self.line):
            return False  # what is on its way may fill the batch
        first = next(iter(self.open), self._submitted)
        return self.ended or self._submitted - first >= self.limit

    def _take_group(self, stalled: bool) -> list[Entry]:
        """The next pictures to encode together, or none."""
        group: list[Entry] = []
        for entry in self.line:
            if entry.place == Place.PREPARED:
                group.append(entry)
            elif self._in_order and entry.place < Place.PREPARED:
                break  # its turn comes first
            if len(group) == self._encode_size:
                break
        if self._in_order and len(group) < self._encode_size and not stalled:
            return []
        if group:
            self._encoding += 1
        for entry in group:
            entry.place = Place.ENCODING
        return group
