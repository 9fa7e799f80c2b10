"""A build's progress, out of TensorRT's threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vitcx.runtime.engines.tensorrt.library import Library

# Name of a phase, steps done, steps in all. Phases nest. Called from the builder's own threads.
Progress = Callable[[str, int, int], None]


class Watch:
    """Tells `report` of the phases, and keeps what it raises: the library must not see it."""

    def __init__(self, report: Progress | None) -> None:
        self._report = report
        self._steps: dict[str, int] = {}
        self._raised: BaseException | None = None

    def start(self, phase: str, steps: int) -> None:
        self._steps[phase] = steps
        self.tell(phase, 0)

    def tell(self, phase: str, done: int) -> bool:
        """Whether to go on."""
        if self._raised is None and self._report is not None:
            try:
                self._report(phase, done, self._steps[phase])
            except BaseException as error:  # KeyboardInterrupt above all
                self._raised = error
        return self._raised is None

    def finish(self, phase: str) -> None:
        self.tell(phase, self._steps[phase])

    def raise_what_came(self) -> None:
        """Raise what the report raised, if it did."""
        if self._raised is not None:
            raise self._raised


def progress_monitor(library: Library, watch: Watch) -> Any:
    """An `IProgressMonitor` of the library that tells `watch`; keep it while the build runs."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.module

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            watch.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.tell(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            watch.finish(phase_name)

    return Monitor()
