"""A picture on its way: one object from its request to its explanation."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from vitcx.runtime.method.estimators.estimator import Estimator
from vitcx.runtime.pictures.preprocess import Prepared
from vitcx.runtime.pipeline.scoring import Scoring
from vitcx.runtime.pipeline.ticket import Ticket
from vitcx.runtime.settings import Request

FloatArray = NDArray[np.float32]


class Reached(IntEnum):
    """How far a picture has come."""

    WAITING, PREPARING, PREPARED, ENCODING, READY = range(5)


@dataclass(eq=False, repr=False)  # its content comes and goes
class Work:
    """A picture on its way. The steps fill in what they make of it; see `stages`.

    Attributes
    ----------
    request : what is asked for.
    index : how many were submitted before it.
    ticket : the promise of its explanation.
    client : who asks.
    is_long : whether it is known from the start to have very many rows.
    reached : how far it has come.
    held : counted among the pictures in memory.
    closed : done or cancelled: whoever has it at hand lets it go.
    seconds : time by step.
    prepared : the model's input, and the picture as a person sees it.
    probabilities : (C,) float32.
    embedding : (D,h,w) float32; None where the engine makes masks.
    made : (K,h,w) float32, the masks that the engine has made; None where it made none.
    tokens : (T,W) float32, where they are wanted.
    targets : the classes that are explained.
    masks, teams : (K,h,w) float32; teams where the estimator asks for them.
    estimator : makes impacts of scores.
    scoring : its rows and their scores.
    """

    request: Request
    index: int
    ticket: Ticket
    client: str = ""
    is_long: bool = False
    reached: Reached = Reached.WAITING
    held: bool = False
    closed: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    prepared: Prepared = field(init=False)
    probabilities: FloatArray = field(init=False)
    embedding: FloatArray | None = None
    made: FloatArray | None = None
    tokens: FloatArray | None = None
    targets: tuple[int, ...] = field(init=False)
    masks: FloatArray = field(init=False)
    teams: FloatArray | None = None
    estimator: Estimator = field(init=False)
    scoring: Scoring = field(init=False)

    @property
    def has_rows(self) -> bool:
        """Whether it is known what rows it has."""
        return self.reached == Reached.READY

    def let_go(self) -> None:
        """Forget the picture and all that was made of it: who still holds this, holds no memory."""
        for name in ("request", "prepared", "probabilities", "masks", "scoring"):
            self.__dict__.pop(name, None)
        self.embedding = self.made = self.tokens = self.teams = None
