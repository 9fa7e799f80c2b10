"""A bundle's graph on ONNX Runtime that reads and writes device memory of ours.

The mask batch is blended straight into the graph's input, on the stream that the graph runs on: no
row visits the host. A full batch always has the same addresses and shape, so ONNX Runtime records
it as a CUDA graph once and launches that from then on; other sizes run node by node.

For one thread: the one that made it. ONNX Runtime keeps recorded graphs by thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.device import Gpu, PinnedBuffer
from vitcx.kernels.gpu.streams import Stream
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.ort_cuda.placement import (
    check_placement,
    placed_nodes,
    tells_placement,
)
from vitcx.runtime.errors import EngineError
from vitcx.runtime.graph_interface import check_interface, interface_of
from vitcx.runtime.manifest import EMBEDDING, INPUT, PROBABILITIES
from vitcx.runtime.onnx_runtime import interface_of_session

FloatArray = NDArray[np.float32]

# Most images of one encoding: their embeddings take much more memory than probabilities.
ENCODE_IMAGES = 8
# Names of ONNX Runtime's run option, and its values: any number keeps a graph, -1 keeps none.
_GRAPH_KEY, _RECORDED, _NOT_RECORDED = "gpu_graph_id", "1", "-1"
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
    options : the provider's, for a GPU, a stream, and whether to record a CUDA graph.
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


class BoundGraph(Closing):
    """The graph, its buffers on the device, and the stream. A context manager.

    A bundle's encoder, where it has one, is a second graph on the same buffers and stream. Opening
    runs a full batch and a full encoding, so that what opens has all the memory it needs.

    Parameters
    ----------
    ort : the module onnxruntime.
    target : where to run.
    gpu : the device, current for this thread.
    batch_size : rows of a full mask batch.
    record : whether a full batch becomes a CUDA graph.
    threads : on the CPU, for the few nodes that compute shapes.

    Attributes
    ----------
    images : (batch_size,3,H,W) float32 on the device: what the graph reads.
    stream : on which it runs.
    """

    def __init__(
        self,
        ort: Any,
        bundle: Bundle,
        target: Target,
        gpu: Gpu,
        batch_size: int,
        *,
        record: bool,
        threads: int = 1,
    ) -> None:
        manifest = bundle.manifest
        self._ort = ort
        self._target = target
        self._gpu = gpu
        self._batch_size = batch_size
        self._full_graph = _RECORDED if record else _NOT_RECORDED
        self._encode_images = min(ENCODE_IMAGES, batch_size)
        self._scorer: Any = None
        self._encoder: Any = None
        self._pinned: PinnedBuffer | None = None
        with contextlib.ExitStack() as owned:
            self.stream = owned.enter_context(gpu.new_stream())
            owned.callback(self.stream.synchronise)

            def allocate(*shape: int) -> DeviceArray:
                return owned.enter_context(gpu.allocate(shape, np.float32, self.stream))

            self.images = allocate(batch_size, manifest.input_channels, *manifest.input_size)
            self._probabilities = allocate(batch_size, manifest.num_classes)
            self._embedding = allocate(self._encode_images, manifest.channels, *manifest.grid)
            owned.callback(self._forget)
            # What is allowed to be recorded need not be. A version that does not tell where it puts
            # nodes refuses, where it is, a graph of which it would leave a part to the CPU.
            allow = not tells_placement(ort)
            options = target.options(gpu, self.stream, record or allow)
            self._scorer = self._encoder = _open(ort, bundle, target, options, threads)
            if bundle.encoder is not bundle:
                options = target.options(gpu, self.stream, allow)
                self._encoder = _open(ort, bundle.encoder, target, options, threads)
            self._full = self._bind(self._scorer, batch_size, [PROBABILITIES])
            self.run(batch_size)
            self._run_encoder(self._encode_images)
            self.stream.synchronise()
            self._owned = owned.pop_all()

    def run(self, rows: int) -> None:
        """Queue the graph on the first rows of `images`."""
        if rows == self._batch_size:
            self._run(self._scorer, self._full, self._full_graph)
        else:
            self._run(self._scorer, self._bind(self._scorer, rows, [PROBABILITIES]), _NOT_RECORDED)

    def probabilities(self, rows: int) -> FloatArray:
        """(rows, C) float32 of what was queued last. Blocks until it is there."""
        return self._download(self._probabilities, rows)

    def predict(self, images: FloatArray) -> FloatArray:
        """(N,3,H,W) float32 on the host to (N,C) float32, for any N."""
        parts = []
        for start in range(0, len(images), self._batch_size):
            part = images[start : start + self._batch_size]
            self._upload(part)
            self.run(len(part))
            parts.append(self.probabilities(len(part)))
        return np.concatenate(parts)

    def encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(N,3,H,W) float32 on the host to (N,C) and (N,D,h,w) float32, for any N."""
        probabilities, embeddings = [], []
        for start in range(0, len(images), self._encode_images):
            part = images[start : start + self._encode_images]
            self._upload(part)
            self._run_encoder(len(part))
            probabilities.append(self.probabilities(len(part)))
            embeddings.append(self._download(self._embedding, len(part)))
        return np.concatenate(probabilities), np.concatenate(embeddings)

    def close(self) -> None:
        """Free everything on the device, after the stream has passed what is queued."""
        self._owned.close()

    def _forget(self) -> None:
        # Before the buffers: a recorded graph names their addresses.
        self._full = None
        self._scorer = self._encoder = None
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            pinned.close()

    def _run_encoder(self, rows: int) -> None:
        """Queue the encoder on the first rows of `images`."""
        binding = self._bind(self._encoder, rows, [PROBABILITIES, EMBEDDING])
        self._run(self._encoder, binding, _NOT_RECORDED)

    def _bind(self, session: Any, rows: int, outputs: list[str]) -> Any:
        """The first `rows` of the buffers as the graph's input and outputs."""
        binding = session.io_binding()
        memory, index = self._target.memory, self._gpu.index
        shape = (rows, *self.images.shape[1:])
        binding.bind_input(INPUT, memory, index, np.float32, shape, self.images.pointer)
        buffers = {PROBABILITIES: self._probabilities, EMBEDDING: self._embedding}
        for name in outputs:
            buffer = buffers[name]
            shape = (rows, *buffer.shape[1:])
            binding.bind_output(name, memory, index, np.float32, shape, buffer.pointer)
        return binding

    def _run(self, session: Any, binding: Any, graph: str) -> None:
        options = self._ort.RunOptions()
        options.add_run_config_entry(_GRAPH_KEY, graph)
        session.run_with_iobinding(binding, options)

    def _upload(self, images: FloatArray) -> None:
        source = np.ascontiguousarray(images, np.float32)
        pinned = self._pinned_of(source.nbytes)
        pinned.write(source)
        # The next use of the pinned memory is behind a download, which blocks.
        pinned.copy_to(self.images.part(0, source.shape, np.float32), self.stream)

    def _download(self, buffer: DeviceArray, rows: int) -> FloatArray:
        part = buffer.part(0, (rows, *buffer.shape[1:]), np.float32)
        pinned = self._pinned_of(part.nbytes)
        pinned.copy_from(part, self.stream)
        self.stream.synchronise()
        return pinned.read(part.shape, np.float32)

    def _pinned_of(self, size: int) -> PinnedBuffer:
        if self._pinned is None or len(self._pinned.bytes) < size:
            if self._pinned is not None:
                self.stream.synchronise()
                self._pinned.close()
            self._pinned = PinnedBuffer(size)
        return self._pinned


def _open(
    ort: Any, bundle: Bundle, target: Target, provider_options: dict[str, str], threads: int
) -> Any:
    """An ONNX Runtime session that runs on `target`, all of it, or an error."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised in the same words, and often handled
    # A pattern is one more block, as large as all that a pass needs, beside what the first pass
    # took; and it is allocated at the second pass, after this has shown that the device has room.
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(
        str(bundle.model_path),
        options,
        providers=[(target.provider, provider_options)],
        enable_fallback=0,
    )
    session.disable_fallback()
    taken = session.get_providers()
    if taken[0] != target.provider:
        raise EngineError(
            f"ONNX Runtime took {' and '.join(taken)} where {target.provider} was asked for: its "
            "CUDA libraries do not load; `vitcx doctor` tells which are missing"
        )
    if tells_placement(ort):
        check_placement(placed_nodes(session), target.provider)
    check_interface(
        f"'{bundle.model_path}'",
        interface_of_session(session),
        interface_of(bundle.manifest),
        all_sizes_known=True,
    )
    return session
