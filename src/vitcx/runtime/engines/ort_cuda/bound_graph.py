"""A graph on ONNX Runtime that reads and writes device memory of ours.

A pass of a recorded size always has the same addresses and shapes, so ONNX Runtime records it as a
CUDA graph once and launches that from then on; any other runs node by node.

For one thread: the one that made it. ONNX Runtime keeps recorded graphs by thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.runtime.engines.batch_sizes import smallest_that_holds

Shapes = Mapping[str, tuple[int, ...]]

# Names of ONNX Runtime's run option, and of its value that keeps no graph; any number keeps one.
_GRAPH_KEY, _NOT_RECORDED = "gpu_graph_id", "-1"


class BoundGraph:
    """One of a bundle's graphs and the buffers that it reads and writes.

    Parameters
    ----------
    ort : the module onnxruntime.
    session : of `open_graph`.
    memory : ONNX Runtime's name of the memory that the buffers are in.
    buffers : by the names of inputs and outputs; they outlive this.
    """

    def __init__(
        self, ort: Any, session: Any, memory: str, buffers: Mapping[str, DeviceArray]
    ) -> None:
        self._ort = ort
        self._session = session
        self._memory = memory
        self._buffers = buffers
        self._inputs = {tensor.name for tensor in session.get_inputs()}

    def run(self, shapes: Shapes) -> None:
        """Queue a pass over the start of the buffers, node by node.

        Parameters
        ----------
        shapes : of all inputs, and of the outputs that are wanted.
        """
        self._run(self._bind(shapes), _NOT_RECORDED)

    def recorded(self, shapes: Shapes, number: int) -> Callable[[], None]:
        """What queues a pass of these shapes; its first call records it, under that number."""
        binding = self._bind(shapes)
        return lambda: self._run(binding, str(number))

    def _bind(self, shapes: Shapes) -> Any:
        binding = self._session.io_binding()
        for name, shape in shapes.items():
            buffer = self._buffers[name]
            bind = binding.bind_input if name in self._inputs else binding.bind_output
            bind(name, self._memory, buffer.device, buffer.dtype.type, shape, buffer.pointer)
        return binding

    def _run(self, binding: Any, graph: str) -> None:
        options = self._ort.RunOptions()
        options.add_run_config_entry(_GRAPH_KEY, graph)
        self._session.run_with_iobinding(binding, options)


class BatchPasses:
    """The passes of a graph over batches of any number of rows.

    With recorded sizes, the smallest that holds the rows is run, and rows that a batch does not
    fill keep what they had. Without, a pass has as many rows as the batch.

    Parameters
    ----------
    shapes_of : the shapes of a pass over so many rows.
    sizes : that are recorded; none where nothing is.
    """

    def __init__(
        self, graph: BoundGraph, shapes_of: Callable[[int], Shapes], sizes: tuple[int, ...]
    ) -> None:
        self._graph = graph
        self._shapes_of = shapes_of
        self._recorded = {
            rows: graph.recorded(shapes_of(rows), number) for number, rows in enumerate(sizes, 1)
        }

    def run(self, rows: int) -> None:
        """Queue a pass that computes the first `rows` rows."""
        if self._recorded:
            self._recorded[smallest_that_holds(rows, self._recorded)]()
        else:
            self._graph.run(self._shapes_of(rows))

    def run_each(self, most: int) -> None:
        """Queue a pass of each recorded size, or of `most` rows: the largest first.

        It shows whether the memory is enough.
        """
        for rows in sorted(self._recorded, reverse=True) or [most]:
            self.run(rows)
