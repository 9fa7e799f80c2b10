"""Where ONNX Runtime runs graphs, and opening them to run there, all of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.gpu.streams import Stream
from vitcx.runtime.engines.ort_cuda.bound_graph import BoundGraph
from vitcx.runtime.engines.ort_cuda.placement import (
    check_placement,
    placed_nodes,
    tells_placement,
)
from vitcx.runtime.errors import EngineError
from vitcx.runtime.graph_interface import Interface, check_interface
from vitcx.runtime.onnx_runtime import interface_of_session

# The first version whose recordings keep the host's memory that they copy from, such as a table of
# the addresses that a Concat reads. Before, a pass of another size wrote its own table there, and
# the next launch of the recording read that.
_RECORDS_SINCE = (1, 30)


@dataclass(frozen=True)
class Target:
    """Where the graph runs.

    Attributes
    ----------
    provider : ONNX Runtime's name of it.
    memory : ONNX Runtime's name of the memory that is bound.
    options : the provider's, for a GPU, a stream, and whether to record CUDA graphs.
    """

    provider: str
    memory: str
    options: Callable[[Gpu, Stream, bool], dict[str, str]]


def _cuda_options(gpu: Gpu, stream: Stream, record: bool) -> dict[str, str]:
    return {
        "device_id": str(gpu.index),
        "user_compute_stream": str(stream.handle),
        "enable_cuda_graph": "1" if record else "0",
        "use_tf32": "0",  # float32 means float32
        # The exhaustive search would run anew for each number of rows.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


CUDA = Target("CUDAExecutionProvider", "cuda", _cuda_options)


def can_record(ort: Any) -> bool:
    """Whether passes of other sizes do no harm to a pass that this version has recorded."""
    major, minor = ort.__version__.split(".")[:2]
    return (int(major), int(minor)) >= _RECORDS_SINCE


@dataclass(frozen=True)
class Opener:
    """Opens graphs that share a stream.

    Attributes
    ----------
    ort : the module onnxruntime.
    target : where they run.
    gpu : the device, current for this thread.
    stream : on which they run.
    threads : on the CPU, for the few nodes that compute shapes.
    """

    ort: Any
    target: Target
    gpu: Gpu
    stream: Stream
    threads: int

    def open(self, path: Path, expected: Interface, *, record: bool) -> Any:
        """An ONNX Runtime session that runs on the target, all of it.

        Parameters
        ----------
        record : whether passes of it may become CUDA graphs.

        Raises
        ------
        EngineError
            ONNX Runtime would run it elsewhere, or parts of it.
        BundleError
            The graph is not the manifest's.
        """
        options = self.ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised in the same words, and often handled
        # A pattern is one more block, as large as all that a pass needs, beside what the first pass
        # took; and it is allocated at the second pass, after this has shown that the device has
        # room.
        options.enable_mem_pattern = False
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # What is allowed to be recorded need not be. A version that does not tell where it puts
        # nodes refuses, where it is, a graph of which it would leave a part to the CPU.
        allow = record or not tells_placement(self.ort)
        provider = self.target.provider
        session = self.ort.InferenceSession(
            str(path),
            options,
            providers=[(provider, self.target.options(self.gpu, self.stream, allow))],
            enable_fallback=0,
        )
        session.disable_fallback()
        taken = session.get_providers()
        if taken[0] != provider:
            raise EngineError(
                f"ONNX Runtime took {' and '.join(taken)} where {provider} was asked for: its "
                "CUDA libraries do not load; `vitcx doctor` tells which are missing"
            )
        if tells_placement(self.ort):
            check_placement(placed_nodes(session), provider)
        check_interface(f"'{path}'", interface_of_session(session), expected, all_sizes_known=True)
        return session

    def bind(self, session: Any, buffers: Mapping[str, DeviceArray]) -> BoundGraph:
        """The graph of `open`, with the buffers that it is to read and write."""
        return BoundGraph(self.ort, session, self.target.memory, buffers)
