"""The record of an engine, and whether it can run here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.session import Session


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can run here.

    Attributes
    ----------
    reason : what it would run on, or the first thing that it lacks and what to do.
    problems : everything that it lacks; empty where it is available.
    notes : what is worth knowing and does not keep it from running.
    """

    name: str
    available: bool
    reason: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def found(
        cls, name: str, runs_on: str, problems: Sequence[str] = (), notes: Sequence[str] = ()
    ) -> EngineStatus:
        """What a probe found: available if there are no problems."""
        reason = problems[0] if problems else runs_on
        return cls(name, not problems, reason, tuple(problems), tuple(notes))


@dataclass(frozen=True)
class SessionOptions:
    """How to open a session; None leaves it to the engine.

    Attributes
    ----------
    threads : CPU threads of one forward pass.
    batch_size : rows of a mask batch.
    device : index of the GPU.
    """

    threads: int | None = None
    batch_size: int | None = None
    device: int | None = None


@dataclass(frozen=True)
class Engine:
    """An engine, as `registry` lists it.

    Attributes
    ----------
    name : as the user gives it.
    extra : of vitcx, that installs what it needs.
    probe : whether it can run here, on the GPU of that index where it runs on one. Cheap, and never
        raises: no session is opened, and a library is loaded only where there is a device for it.
        So "available" is a promise that nothing known is missing, not that opening works.
    open : a session of a bundle that was checked against its digests.
    on_gpu : whether it runs on a GPU, and so takes `SessionOptions.device`.
    automatic : whether ``auto`` may take it.
    """

    name: str
    extra: str
    probe: Callable[[int], EngineStatus]
    open: Callable[[Bundle, SessionOptions], Session]
    on_gpu: bool = False
    automatic: bool = True
