"""What is to be done next: the pictures on their way, and which of them has its turn.

Knows the order of work (see `pipeline`) and does none of it; its methods are called with the
pipeline's lock held.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from itertools import islice

from vitcx.runtime.engines.session import Scores, Session
from vitcx.runtime.pipeline.packing import PackedBatch, Packer
from vitcx.runtime.pipeline.scoring import Scoring
from vitcx.runtime.pipeline.ticket import Ticket
from vitcx.runtime.pipeline.turns import Arrivals, Turns
from vitcx.runtime.pipeline.work import Reached, Work
from vitcx.runtime.settings import Request

# Where pictures are served as they come, one of more batches than this is long: see `turns`. What
# an ordinary picture has is less.
FAIR_BATCHES = 4


@dataclass(frozen=True)
class Prepare:
    """Read a picture."""

    work: Work


@dataclass(frozen=True)
class Encode:
    """Encode pictures in one call of the engine, and find their masks."""

    group: list[Work]


@dataclass(frozen=True)
class Score:
    """Score a batch of rows."""

    packed: PackedBatch


class WorkQueue:
    """The pictures on their way.

    Parameters
    ----------
    session : whose batches are filled.
    limit : the most pictures held at a time. Where they are served as they come, one client holds
        at most three quarters of them, and those known to be long are at most half.
    scorers : the most batches that are with the engine at a time.
    encode_size : the most pictures of one encoding.
    in_order : see `pipeline`.

    Attributes
    ----------
    open : every picture whose rows are not all scored, by its index, in order of submission.
    line : of those, the ones whose rows the packer does not have yet.
    unsettled : every picture whose ticket has no answer yet, by its index.
    ended : no more is coming.
    """

    def __init__(
        self, session: Session, *, limit: int, scorers: int, encode_size: int, in_order: bool
    ) -> None:
        self.limit = limit
        self._long_rows = FAIR_BATCHES * session.batch_size
        self.packer = Packer(
            session, Arrivals() if in_order else Turns(self._long_rows, FAIR_BATCHES)
        )
        self.open: dict[int, Work] = {}
        self.line: deque[Work] = deque()
        self.unsettled: dict[int, Work] = {}
        self._by_scoring: dict[Scoring, Work] = {}  # of `open`, the ones whose rows the packer has
        self._held = 0  # pictures in memory: from preparation to result
        self._scoring = 0
        self._encoding = 0
        self.ended = False
        self._submitted = 0
        self._scorers = scorers
        self._encode_size = min(encode_size, limit)
        self._in_order = in_order

    def add(self, request: Request, ticket: Ticket, client: str, least_rows: int) -> Work:
        """Put a client's picture at the end of the line; it has `least_rows` rows or more."""
        work = Work(request, self._submitted, ticket, client, is_long=least_rows > self._long_rows)
        self._submitted += 1
        self.open[work.index] = self.unsettled[work.index] = work
        self.line.append(work)
        return work

    def next_action(self) -> Prepare | Encode | Score | None:
        """The most urgent thing that can be done now; it is then in hand."""
        free = self._scoring < self._scorers
        if free and self.packer.is_full:
            return self._take_batch()
        stalled = self._stalled()
        if group := self._take_group(stalled):
            return Encode(group)
        if work := self._next_to_hold():
            work.reached = Reached.PREPARING
            work.held = True
            self._held += 1
            return Prepare(work)
        if free and stalled and self.packer.pending_rows:
            return self._take_batch()
        return None

    def encoded(self) -> list[Work]:
        """An encoding is over: rows can be scored. Returns the pictures that have none."""
        self._encoding -= 1
        without_rows: list[Work] = []
        kept: deque[Work] = deque()
        while self.line:
            work = self.line.popleft()
            if not work.has_rows:
                kept.append(work)
                if self._in_order:
                    break
            elif work.scoring.done:
                del self.open[work.index]
                without_rows.append(work)
            else:
                self._by_scoring[work.scoring] = work
                self.packer.add(work.scoring, work.client)
        self.line = kept + self.line
        return without_rows

    def scored(self, packed: PackedBatch, scores: Scores) -> list[Work]:
        """A batch is scored: its rows get their scores. Returns the pictures that are complete.

        If it raises, the batch is `lost`.
        """
        # A cancelled picture's rows are scored if they were packed already, and belong to none.
        finished = [
            self._by_scoring.pop(scoring)
            for scoring in packed.deliver(scores)
            if scoring in self._by_scoring
        ]
        for work in finished:
            del self.open[work.index]
        self._scoring -= 1
        return finished

    def lost(self, packed: PackedBatch) -> list[Work]:
        """A batch failed. Returns the pictures that had a row in it."""
        self._scoring -= 1
        return [
            self._by_scoring[scoring] for scoring in packed.scorings if scoring in self._by_scoring
        ]

    def release(self, work: Work) -> None:
        """Take a picture out of every queue and give its place free. Twice does no harm."""
        if work.closed:
            return
        work.closed = True
        self.unsettled.pop(work.index, None)
        self.open.pop(work.index, None)
        if work in self.line:
            self.line.remove(work)
        if work.has_rows:
            self.packer.cancel(work.scoring)
            self._by_scoring.pop(work.scoring, None)
        if work.held:
            work.held = False
            self._held -= 1

    def _next_to_hold(self) -> Work | None:
        """The next picture to read, if there is room for it."""
        if self._held >= self.limit:
            return None
        waiting = (work for work in self.line if work.reached == Reached.WAITING)
        if self._in_order:
            return next(waiting, None)
        held = [work for work in self.unsettled.values() if work.held]
        by_client = Counter(work.client for work in held)
        most = self.limit - self.limit // 4
        long_too = sum(work.is_long for work in held) < max(1, self.limit // 2)
        allowed = (
            work
            for work in waiting
            if by_client[work.client] < most and (long_too or not work.is_long)
        )
        return min(allowed, key=lambda work: by_client[work.client], default=None)

    def _take_batch(self) -> Score:
        self._scoring += 1
        return Score(self.packer.pack())

    def _stalled(self) -> bool:
        """Whether no full batch and no full encoding can come of waiting."""
        if self._scoring:
            return False
        if not self._in_order:
            return self._encoding == 0
        for work in self.line:
            if work.reached == Reached.WAITING and self._window_is_full():
                break  # neither this one nor those behind it come before a batch has run
            if work.reached != Reached.PREPARED:
                return False  # what is on its way may fill the batch
        first = next(iter(self.open), self._submitted)
        return self.ended or self._submitted - first >= self.limit

    def _window_is_full(self) -> bool:
        """Whether the pictures whose rows are not all scored are as many as may be held."""
        return sum(work.held for work in islice(self.open.values(), self.limit)) >= self.limit

    def _take_group(self, stalled: bool) -> list[Work]:
        """The next pictures to encode together, or none."""
        group: list[Work] = []
        for work in self.line:
            if work.reached == Reached.PREPARED:
                group.append(work)
            elif self._in_order and work.reached < Reached.PREPARED:
                break  # its turn comes first
            if len(group) == self._encode_size:
                break
        if self._in_order and len(group) < self._encode_size and not stalled:
            return []
        if group:
            self._encoding += 1
        for work in group:
            work.reached = Reached.ENCODING
        return group
