"""A session on TensorRT or TensorRT-RTX: one class, their Python APIs are the same.

Encoding and scoring run on contexts of their own, on different profiles of one engine, so that a
pipeline's threads do both at once. Masked rows are blended on the GPU, in the engine's input; only
the images, the small masks and the probabilities cross the bus. Never ran on hardware so far: see
docs/gpu-notes.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.device_errors import device_errors, is_out_of_memory
from vitcx.runtime.engines.device_memory import open_fitting
from vitcx.runtime.engines.session import PixelBatch, Scores, Session
from vitcx.runtime.engines.tensorrt.bound_contexts import EncodeContext, ScoreContext
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.context import PlanRefused, open_plan
from vitcx.runtime.engines.tensorrt.context_pool import ContextPool
from vitcx.runtime.engines.tensorrt.library import find_library
from vitcx.runtime.engines.tensorrt.plan import PlanOrder, forget_plan, plan_for, runtime_cache_path
from vitcx.runtime.engines.tensorrt.profiles import ENCODE, SCORE, Shapes
from vitcx.runtime.engines.tensorrt.runtime_cache import RuntimeCache
from vitcx.runtime.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

FloatArray = NDArray[np.float32]

DEFAULT_SHAPES = Shapes()


class TensorRTSession(Session):
    """TensorRT on one GPU.

    All memory is taken at construction, and a batch is run: where that does not fit, mask batches
    are halved until it does, which the log says once. A thread that comes when all contexts are
    taken gets one more, up to `MOST_CONTEXTS` of each kind, or waits.

    Parameters
    ----------
    bundle : checked against its digests. Its precision is the engine's.
    flavour : "tensorrt" or "tensorrt-rtx".
    batch_size : rows of a mask batch; None takes `DEFAULT_SHAPES`. The engine always runs that
        many.
    encode_images : most images that are encoded at once; more are encoded in turn.
    options : of the builder, where the plan is not in the cache.
    device : index of the GPU.

    Raises
    ------
    MissingExtraError
        The library is not installed.
    EngineError
        No GPU, or the library cannot build or run the plan: the message has its words.
    BundleError
        The graph is not the manifest's.
    """

    def __init__(
        self,
        bundle: Bundle,
        flavour: str = "tensorrt",
        batch_size: int | None = None,
        *,
        encode_images: int = DEFAULT_SHAPES.encode_images,
        options: BuildOptions | None = None,
        device: int = 0,
    ) -> None:
        super().__init__()
        library = find_library(flavour)
        with device_errors(f"the engine '{flavour}': opening GPU {device}"):
            self._gpu = Gpu(device)
        self.engine = flavour
        self.device = self._gpu.name
        asked = batch_size or DEFAULT_SHAPES.batch_size

        def attempt(rows: int) -> _Opened:
            order = PlanOrder(
                library,
                bundle,
                Shapes.of_session(rows, encode_images),
                options or BuildOptions(),
                self._gpu.name,
                self._gpu.compute_capability,
            )
            return _Opened(order, self._gpu)

        with self._gpu.current():
            self._opened = open_fitting(attempt, asked, is_out_of_memory)
        self.batch_size = self._opened.shapes.batch_size

    def _encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        most = self._opened.shapes.encode_images
        with self._working("encoding"), self._opened.encoders.take() as context:
            parts = [
                context.encode(images[start : start + most])
                for start in range(0, len(images), most)
            ]
        probabilities, embedding = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return probabilities, embedding

    def _score(self, batch: PixelBatch) -> Scores:
        with self._working("scoring"), self._opened.scorers.take() as context:
            return context.score(batch)

    def _predict(self, images: FloatArray) -> FloatArray:
        with self._working("predicting"), self._opened.scorers.take() as context:
            return np.concatenate(
                [
                    context.predict(images[start : start + self.batch_size])
                    for start in range(0, len(images), self.batch_size)
                ]
            )

    def _close(self) -> None:
        with self._gpu.current():
            self._opened.close()

    @contextlib.contextmanager
    def _working(self, doing: str) -> Iterator[None]:
        with device_errors(f"{self.engine} on {self.device}: {doing}"), self._gpu.current():
            yield


class _Opened(Closing):
    """Engines for certain shapes, and the contexts on them; both kinds have one from the start.

    The engine is one, with both profiles, unless the bundle's encoder is a graph of its own.
    """

    def __init__(self, order: PlanOrder, gpu: Gpu) -> None:
        self.shapes = order.shapes
        library, manifest = order.library, order.bundle.manifest
        parts = order.parts()
        score, encode = parts[SCORE], parts[ENCODE]
        scorer = _engine(score)
        encoder = scorer if encode == score else _engine(encode)
        launcher = KernelLauncher(gpu)
        score_cache, encode_cache = _runtime_cache(score, SCORE), _runtime_cache(encode, ENCODE)
        self.scorers = ContextPool(
            lambda: ScoreContext(
                library, scorer, gpu, manifest, launcher, score.shapes, score_cache
            )
        )
        try:
            self.encoders = ContextPool(
                lambda: EncodeContext(library, encoder, gpu, manifest, encode.shapes, encode_cache)
            )
        except BaseException:
            self.scorers.close()
            raise

    def close(self) -> None:
        self.scorers.close()
        self.encoders.close()


def _runtime_cache(order: PlanOrder, profile: str) -> RuntimeCache | None:
    """What was compiled for a profile; TensorRT compiles nothing when it runs."""
    if order.library.flavour != "tensorrt-rtx":
        return None
    return RuntimeCache(runtime_cache_path(order, profile))


def _engine(order: PlanOrder) -> trt.ICudaEngine:
    """The engine of the bundle's plan. One from the cache that is refused is built once more."""

    def opened() -> trt.ICudaEngine:
        return open_plan(order.library, plan_for(order), order.bundle.manifest, order.shapes)

    try:
        return opened()
    except PlanRefused as error:
        if is_out_of_memory(error):
            raise
        forget_plan(order, str(error))
    try:
        return opened()
    except PlanRefused as error:
        raise EngineError(
            f"a plan that was just built for {order.gpu_name} is refused: {error}; "
            "'vitcx doctor' shows the versions of library and driver"
        ) from error
