"""Forward passes of a few sizes over the same buffers, each recorded as a CUDA graph.

A CUDA graph is of one shape and one context: so each size has a context of its own. They share
their scratch memory, because they run one after the other, on one stream.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping

from vitcx.kernels.closing import Closing
from vitcx.kernels.errors import first_line
from vitcx.kernels.gpu.device import CudaGraph, Gpu
from vitcx.kernels.gpu.streams import Stream
from vitcx.runtime.device_errors import is_out_of_memory
from vitcx.runtime.engines.batch_sizes import batch_sizes, smallest_that_holds
from vitcx.runtime.engines.tensorrt.context import Context

log = logging.getLogger("vitcx")


class RecordedPasses(Closing):
    """A pass for each of `batch_sizes`; the smallest that holds the rows is run.

    Parameters
    ----------
    stream : of the passes.
    batch_size : rows of the largest one.
    new_context : bound, for so many rows.
    shapes_of : the inputs' shapes for so many rows.
    of_library : whether the library makes the CUDA graphs itself, as TensorRT-RTX does (see
        `context`).
    """

    def __init__(
        self,
        gpu: Gpu,
        stream: Stream,
        batch_size: int,
        new_context: Callable[[int], Context],
        shapes_of: Callable[[int], Mapping[str, tuple[int, ...]]],
        *,
        of_library: bool,
    ) -> None:
        self._gpu = gpu
        self._stream = stream
        self._of_library = of_library
        self._passes: dict[int, Callable[[], None]] = {}
        self._refusal = ""
        with contextlib.ExitStack() as owned:
            # The largest first: it shows whether the memory is enough.
            for rows in reversed(batch_sizes(batch_size)):
                context = owned.enter_context(new_context(rows))
                context.set_shapes(shapes_of(rows))
                # The first pass loads kernels.
                context.enqueue(stream)
                stream.synchronise()
                context.keep_runtime_cache()
                self._passes[rows] = self._recorded(context, owned)
            self._owned = owned.pop_all()
        if self._refusal:
            log.warning(
                "no CUDA graph of a forward pass, its kernels go one by one: %s", self._refusal
            )

    def run(self, rows: int) -> None:
        """Queue the smallest pass that computes the first `rows` rows."""
        self._passes[smallest_that_holds(rows, self._passes)]()

    def close(self) -> None:
        """The contexts and CUDA graphs; the stream must be at rest."""
        self._passes = {}
        self._owned.close()

    def _recorded(self, context: Context, owned: contextlib.ExitStack) -> Callable[[], None]:
        """What queues the context's pass, run once."""

        def one_by_one() -> None:
            context.enqueue(self._stream)

        if self._of_library:
            if not context.can_be_captured(self._stream):
                self._refusal = "TensorRT-RTX says that this plan's pass cannot be captured"
            # It captures the second pass, not the first: so its memory is taken here too.
            one_by_one()
            self._stream.synchronise()
            return one_by_one
        # The blend stays outside: its arguments vary.
        graph = self._record(context)
        if graph is None:
            return one_by_one
        owned.enter_context(graph)

        def at_once() -> None:
            graph.launch(self._stream)

        at_once()
        self._stream.synchronise()
        return at_once

    def _record(self, context: Context) -> CudaGraph | None:
        try:
            return self._gpu.record_cuda_graph(self._stream, context.enqueue)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._refusal = first_line(error)
            return None
