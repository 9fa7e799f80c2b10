"""A session on ONNX Runtime's CUDA provider: blending, graphs and answers on one GPU, one stream.

Everything on the device is done by one thread of the session's own: CUDA's current device and
ONNX Runtime's recorded graphs belong to a thread. Callers wait for it in the order they came, and
the sessions of a process for one another.
Never ran on hardware so far: see docs/gpu-notes.md.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.errors import DeviceError, first_line
from vitcx.kernels.gpu.blending import Blender
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.device_errors import device_errors, is_out_of_memory
from vitcx.runtime.engines.device_memory import open_fitting
from vitcx.runtime.engines.graph_session import GraphSession
from vitcx.runtime.engines.ort_cuda.bound_bundle import BoundBundle
from vitcx.runtime.engines.ort_cuda.cuda_libraries import preload_cuda_libraries
from vitcx.runtime.engines.ort_cuda.target import CUDA, Target, can_record
from vitcx.runtime.engines.session import EncodedMasks, PixelBatch, Scores, TeamBatch
from vitcx.runtime.errors import EngineError, VitcxError
from vitcx.runtime.onnx_runtime import import_onnxruntime

log = logging.getLogger("vitcx")
FloatArray = NDArray[np.float32]
T = TypeVar("T")

# ONNX Runtime records in CUDA's global mode: meanwhile CUDA refuses to every thread of the process
# what may wait for the device, such as allocating, and what is refused spoils the recording too.
_ONE_SESSION_AT_A_TIME = threading.Lock()

# Not measured: the batch that TensorRT plans are made for.
DEFAULT_BATCH_SIZE = 64


class OnnxRuntimeCudaSession(GraphSession):
    """ONNX Runtime on an NVIDIA GPU. Any number of threads may call it.

    Parameters
    ----------
    bundle : checked against its digests.
    threads : on the CPU, for the nodes that compute shapes; None takes one.
    batch_size : rows of a mask batch; None takes `DEFAULT_BATCH_SIZE`. Fewer are taken where the
        GPU's memory does not hold them, and that is said.
    device : index of the GPU.
    target : where ONNX Runtime runs: the tests' one seam.

    Raises
    ------
    EngineError
        There is no GPU, or ONNX Runtime cannot run all of the graph on it.
    MissingExtraError
        The module onnxruntime is not installed.
    """

    engine = "cuda"
    device = "the GPU"

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        batch_size: int | None = None,
        *,
        device: int = 0,
        target: Target = CUDA,
    ) -> None:
        super().__init__()
        ort = _import_onnxruntime(target)
        self._thread: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "vitcx-cuda")
        try:
            self._device = self._wait(
                f"opening '{bundle.path}'",
                lambda: _open_device(ort, bundle, target, device, threads or 1, batch_size),
            )
        except BaseException:
            self._thread.shutdown()
            self._thread = None
            raise
        self.batch_size = self._device.batch_size
        self.device = self._device.name
        self.scores_teams = self._device.graphs.teams is not None
        self.makes_masks = self._device.graphs.makes_masks

    def _encoded(self, images: FloatArray, *outputs: str) -> list[FloatArray]:
        return self._wait("encoding", lambda: self._device.graphs.encode(images, *outputs))

    def _encode_masks(
        self, images: FloatArray, orders: Sequence[MaskOrder | None], tokens: bool
    ) -> EncodedMasks:
        if not self.makes_masks:
            return super()._encode_masks(images, orders, tokens)
        return self._wait(
            "encoding", lambda: self._device.graphs.encode_masks(images, orders, tokens=tokens)
        )

    def _predict(self, images: FloatArray) -> FloatArray:
        return self._wait("predicting", lambda: self._device.graphs.predict(images))

    def _score(self, batch: PixelBatch) -> Scores:
        return self._wait("scoring", lambda: self._device.score(batch))

    def _score_teams(self, batch: TeamBatch) -> Scores:
        if not self.scores_teams:
            return super()._score_teams(batch)
        return self._wait("scoring teams", lambda: self._device.score_teams(batch))

    def _close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.submit(_in_turn, self._device.close).result()
            thread.shutdown()

    def _wait(self, doing: str, work: Callable[[], T]) -> T:
        """Have the device's thread do something, and wait for it."""
        thread = self._thread
        if thread is None:
            raise EngineError("the session is closed: load the bundle again")
        with device_errors(f"{self.engine} on {self.device}: {doing}"):
            return thread.submit(_in_turn, work).result()


def _in_turn(work: Callable[[], T]) -> T:
    with _ONE_SESSION_AT_A_TIME:
        return work()


class _Device(Closing):
    """What the session owns on the GPU; for its thread alone."""

    def __init__(
        self, gpu: Gpu, launcher: KernelLauncher, graphs: BoundBundle, batch_size: int
    ) -> None:
        self.name = f"{gpu.name} ({gpu.arch})"
        self.graphs = graphs
        self.batch_size = batch_size
        self._blender = Blender(gpu, launcher, graphs.stream)
        self._blender.reserve(graphs.images.shape)

    def score(self, batch: PixelBatch) -> Scores:
        return self._scored(
            batch.rows,
            lambda: self._blender.blend(
                batch.images, batch.masks, batch.perturbations, self.graphs.images
            ),
            lambda: self.graphs.run(batch.rows),
        )

    def score_teams(self, batch: TeamBatch) -> Scores:
        teams = self.graphs.teams
        assert teams is not None
        return self._scored(
            batch.rows,
            lambda: teams.upload(batch, self.graphs.transfers),
            lambda: teams.run(batch.rows, len(batch.patches[0])),
        )

    def _scored(self, rows: int, fill: Callable[[], None], run: Callable[[], None]) -> Scores:
        """The scores of rows that `fill` queues to the device and `run` queues the graph on."""
        start = time.perf_counter()
        stream = self.graphs.stream
        fill()
        filled = stream.record(timed=True)
        run()
        done = stream.record(timed=True)
        probabilities = self.graphs.probabilities(rows)
        # The host queues ahead of the device: only the device's clock tells the two parts apart.
        forward = float(done - filled) / 1000
        return Scores(probabilities, max(0.0, time.perf_counter() - start - forward), forward)

    def close(self) -> None:
        self._blender.close()
        self.graphs.close()


def _open_device(
    ort: Any, bundle: Bundle, target: Target, index: int, threads: int, batch_size: int | None
) -> _Device:
    try:
        gpu = Gpu(index)
        gpu.make_current()  # the thread is the session's own
    except DeviceError as error:
        raise EngineError(f"the engine 'cuda' cannot run here: {error}") from error

    launcher = KernelLauncher(gpu)

    def graphs(size: int, record: bool) -> BoundBundle:
        return BoundBundle(ort, bundle, target, gpu, launcher, size, record=record, threads=threads)

    def record(size: int) -> BoundBundle | None:
        try:
            return graphs(size, record=True)
        except Exception as error:
            if isinstance(error, VitcxError) or is_out_of_memory(error):
                raise
            # A graph with nodes between which ONNX Runtime waits cannot be recorded.
            log.info("ONNX Runtime records no CUDA graph: %s", first_line(error))
            # The traceback holds the frames of the attempt, and with them all its device memory.
            error.__traceback__ = None
        return None

    def attempt(size: int) -> _Device:
        opened = record(size) if can_record(ort) else None
        if opened is None:
            opened = graphs(size, record=False)
        with contextlib.ExitStack() as owned:
            owned.enter_context(opened)
            device = _Device(gpu, launcher, opened, size)
            owned.pop_all()
        return device

    if not can_record(ort):
        log.info("ONNX Runtime %s records no CUDA graph: 1.30 and newer do", ort.__version__)
    return open_fitting(attempt, batch_size or DEFAULT_BATCH_SIZE, is_out_of_memory)


def _import_onnxruntime(target: Target) -> Any:
    onnxruntime = import_onnxruntime("the engine 'cuda'", "gpu")
    if target.provider not in onnxruntime.get_available_providers():
        raise EngineError(
            f"the engine 'cuda' cannot run here: the onnxruntime {onnxruntime.__version__} that is "
            "installed is not built for CUDA; run  pip uninstall onnxruntime && pip install "
            "'vitcx[gpu]'"
        )
    for note in preload_cuda_libraries(onnxruntime) if target is CUDA else ():
        log.debug("%s", note)
    return onnxruntime
