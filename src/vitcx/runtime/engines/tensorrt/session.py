"""A session on TensorRT or TensorRT-RTX: one class, their Python APIs are the same.

Encoding and scoring run on contexts of their own, on different profiles of one engine, so that a
pipeline's threads do both at once. Masked rows are blended on the GPU, in the engine's input; only
the images, the small masks and the probabilities cross the bus. Never ran on hardware so far: see
docs/gpu-notes.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.device_errors import device_errors, is_out_of_memory
from vitcx.runtime.engines.device_masks import joined
from vitcx.runtime.engines.device_memory import open_fitting
from vitcx.runtime.engines.graph_session import GraphSession
from vitcx.runtime.engines.session import EncodedMasks, PixelBatch, Scores, TeamBatch
from vitcx.runtime.engines.tensorrt.bound_contexts import OpenedPlan, ScoreContext
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.context import PlanRefused, open_plan
from vitcx.runtime.engines.tensorrt.context_pool import ContextPool
from vitcx.runtime.engines.tensorrt.encode_context import EncodeContext
from vitcx.runtime.engines.tensorrt.library import find_library
from vitcx.runtime.engines.tensorrt.plan import PlanOrder, forget_plan, plan_for, plan_key
from vitcx.runtime.engines.tensorrt.profiles import ENCODE, SCORE, TEAMS, Shapes
from vitcx.runtime.engines.tensorrt.team_context import TeamContext
from vitcx.runtime.errors import BundleError, EngineError

FloatArray = NDArray[np.float32]

DEFAULT_SHAPES = Shapes()


class TensorRTSession(GraphSession):
    """TensorRT on one GPU.

    All memory is taken at construction, and a batch is run: where that does not fit, mask batches
    are halved until it does, which the log says once. A thread that comes when all contexts are
    taken gets one more, up to `MOST_CONTEXTS` of each kind, or waits.

    Parameters
    ----------
    bundle : checked against its digests. Its precision is the engine's.
    flavour : "tensorrt" or "tensorrt-rtx".
    batch_size : rows of a mask batch; None takes `DEFAULT_SHAPES`. A pass computes all, a half or
        a quarter of them.
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
        self.scores_teams = self._opened.teams is not None
        with self._gpu.current(), self._opened.encoders.take() as encoder:
            self.makes_masks = encoder.makes_masks
        self.plan = self._opened.plan

    def _encoded(self, images: FloatArray, *outputs: str) -> list[FloatArray]:
        most = self._opened.shapes.encode_images
        with self._working("encoding"), self._opened.encoders.take() as context:
            parts = [
                context.encode(images[start : start + most], *outputs)
                for start in range(0, len(images), most)
            ]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _encode_masks(
        self, images: FloatArray, orders: Sequence[MaskOrder | None], tokens: bool
    ) -> EncodedMasks:
        if not self.makes_masks:
            return super()._encode_masks(images, orders, tokens)
        most = self._opened.shapes.encode_images
        with self._working("encoding"), self._opened.encoders.take() as context:
            return joined(
                [
                    context.encode_masks(
                        images[start : start + most], orders[start : start + most], tokens=tokens
                    )
                    for start in range(0, len(images), most)
                ]
            )

    def _score(self, batch: PixelBatch) -> Scores:
        with self._working("scoring"), self._opened.scorers.take() as context:
            return context.score(batch)

    def _score_teams(self, batch: TeamBatch) -> Scores:
        teams = self._opened.teams
        if teams is None:
            return super()._score_teams(batch)
        with self._working("scoring teams"), teams.take() as context:
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
    """Engines for certain shapes, and the contexts on them; each kind has one from the start.

    What encodes and scores is one engine, unless the bundle's encoder is a graph of its own.
    """

    def __init__(self, order: PlanOrder, gpu: Gpu) -> None:
        self.shapes = order.shapes
        self.plan = (
            f"{order.library.flavour} {order.library.version}, {plan_key(order).digest()[:16]}"
        )
        parts = order.parts()
        scorer = _open(parts[SCORE], gpu)
        encoder = scorer if parts[ENCODE] == parts[SCORE] else _open(parts[ENCODE], gpu)
        launcher = KernelLauncher(gpu)
        self.teams: ContextPool[TeamContext] | None = None
        with contextlib.ExitStack() as owned:
            own = owned.enter_context
            self.scorers = own(ContextPool(lambda: ScoreContext(scorer, launcher)))
            self.encoders = own(ContextPool(lambda: EncodeContext(encoder, launcher)))
            if TEAMS in parts:
                teams = _open(parts[TEAMS], gpu)
                if teams.token_shape != encoder.token_shape:
                    raise BundleError(
                        f"the encoder of '{order.bundle.path}' gives tokens {encoder.token_shape} "
                        f"and the graph that scores teams takes {teams.token_shape}: export the "
                        "model again"
                    )
                self.teams = own(ContextPool(lambda: TeamContext(teams)))
            self._owned = owned.pop_all()

    def close(self) -> None:
        self._owned.close()


def _open(order: PlanOrder, gpu: Gpu) -> OpenedPlan:
    """The bundle's plan, open. One from the cache that is refused is built once more."""

    def opened() -> OpenedPlan:
        engine = open_plan(order.library, plan_for(order), order.bundle, order.shapes)
        return OpenedPlan(order, engine, gpu)

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
