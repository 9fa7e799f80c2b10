"""Runs a graph on ONNX Runtime and gives any of its values, inner ones too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitcx.kernels.errors import first_line
from vitcx.runtime.cores import available_cores
from vitcx.runtime.errors import InputError
from vitcx.runtime.onnx_runtime import import_onnxruntime, open_on_cpu

AnyArray = NDArray[Any]

# Inner values that one run gives when all are wanted: those of a large model fill the memory.
_AT_ONCE = 150
_SILENT = 4


class Runner:
    """Runs one graph, whose weights may lie in `folder`. Sessions are kept by what they give."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        self._folder = folder
        self._sessions: dict[tuple[str, ...], Any] = {}

    def run(self, feeds: Mapping[str, AnyArray], wanted: Sequence[str]) -> dict[str, AnyArray]:
        """The values called `wanted`.

        Raises
        ------
        InputError
            ONNX Runtime cannot run the graph on these inputs.
        """
        names = tuple(dict.fromkeys(wanted))
        onnxruntime = import_onnxruntime("vitcx export", "onnx")
        options = onnxruntime.RunOptions()
        options.log_severity_level = _SILENT
        try:
            if names not in self._sessions:
                self._sessions[names] = self._open(names)
            found = self._sessions[names].run(list(names), dict(feeds), options)
        except Exception as error:  # its own types
            raise InputError(f"ONNX Runtime cannot run the graph: {first_line(error)}") from None
        return dict(zip(names, found, strict=True))

    def shapes(
        self, feeds: Mapping[str, AnyArray], values: Iterable[str]
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of values, without keeping what is in them."""
        names, shapes = list(values), {}
        for start in range(0, len(names), _AT_ONCE):
            part = self.run(feeds, names[start : start + _AT_ONCE])
            # Sequences and optional values have none.
            shapes.update({name: v.shape for name, v in part.items() if isinstance(v, np.ndarray)})
            self._sessions.clear()
        return shapes

    def _open(self, names: Sequence[str]) -> Any:
        onnxruntime = import_onnxruntime("vitcx export", "onnx")
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        given = {output.name: output for output in self.model.graph.output}
        del model.graph.output[:]
        for name in names:
            model.graph.output.append(given.get(name) or onnx.ValueInfoProto(name=name))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = available_cores()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        path = self._folder / "run.onnx"
        onnx.save(model, path)
        try:
            return open_on_cpu(onnxruntime, path, options)
        finally:
            path.unlink(missing_ok=True)
