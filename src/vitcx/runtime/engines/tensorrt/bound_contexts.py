"""What one thread needs to encode, or to score, on TensorRT: contexts bound to its buffers.

With them go a stream and, for scoring, CUDA graphs. Nothing is allocated and no address changes
once it is made: a CUDA graph holds on to both.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.blending import Blender
from vitcx.kernels.gpu.device import Gpu, PinnedBuffer
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.gpu.streams import Stream
from vitcx.runtime.device_errors import device_errors
from vitcx.runtime.engines.session import PixelBatch, Scores
from vitcx.runtime.engines.tensorrt.context import Context, scratch_bytes
from vitcx.runtime.engines.tensorrt.interface import interface_of_engine
from vitcx.runtime.engines.tensorrt.plan import PlanOrder, runtime_cache_path
from vitcx.runtime.engines.tensorrt.profiles import SCORE, SHORT, Range
from vitcx.runtime.engines.tensorrt.recorded_passes import RecordedPasses
from vitcx.runtime.engines.tensorrt.runtime_cache import RuntimeCache
from vitcx.runtime.graph_interface import token_shape_of
from vitcx.runtime.manifest import EMBEDDING, INPUT, PROBABILITIES, TOKENS

if TYPE_CHECKING:
    import tensorrt as trt

FloatArray = NDArray[np.float32]
_INPUT_DTYPES = {INPUT: np.float32, TOKENS: np.float32}  # the others are 64-bit indices


@dataclass(frozen=True)
class OpenedPlan:
    """A plan that is open: its engine, and what it was made for.

    Attributes
    ----------
    order : of the plan.
    engine : of `open_plan`; contexts share it.
    gpu : that runs it.
    """

    order: PlanOrder
    engine: trt.ICudaEngine
    gpu: Gpu
    _caches: dict[str, RuntimeCache] = field(default_factory=dict)

    @property
    def compiles_when_it_runs(self) -> bool:
        """TensorRT-RTX does, and records its own CUDA graphs."""
        return self.order.library.flavour == "tensorrt-rtx"

    @property
    def token_shape(self) -> tuple[int, ...]:
        """(T,W) of a picture's tokens; () where the graph has none."""
        library = self.order.library
        return token_shape_of(
            "the graph in the plan", interface_of_engine(library.module, self.engine)
        )

    def ranges(self, profile: str) -> dict[str, Range]:
        """As `Shapes.ranges`."""
        return self.order.shapes.ranges(profile, self.order.bundle.manifest, self.token_shape)

    def outputs(self) -> dict[str, tuple[int, ...]]:
        """The shape of a row of each output."""
        module, manifest = self.order.library.module, self.order.bundle.manifest
        shapes = {
            PROBABILITIES: (manifest.num_classes,),
            EMBEDDING: (manifest.channels, *manifest.grid),
            TOKENS: self.token_shape,
        }
        found = interface_of_engine(module, self.engine).outputs
        return {tensor.name: shapes[tensor.name] for tensor in found}

    def scratch(self, profiles: tuple[str, ...], stream: Stream) -> DeviceArray | None:
        """Scratch memory that contexts on these profiles may share; None where they take theirs."""
        indices = [self.order.shapes.profiles.index(profile) for profile in profiles]
        size = scratch_bytes(self.engine, indices)
        return None if size is None else self.gpu.allocate((size,), np.uint8, stream)

    def context(
        self, profile: str, stream: Stream, scratch: DeviceArray | None, rows: int | None
    ) -> Context:
        """A new context on a profile; for `rows` alone, and one shape, where they are given."""
        cache = None
        if self.compiles_when_it_runs:
            # Each shape has kernels of its own.
            name = profile if rows is None else f"{profile}-{rows}"
            cache = self._caches.setdefault(
                name, RuntimeCache(runtime_cache_path(self.order, name))
            )
        return Context(
            self.order.library,
            self.engine,
            stream,
            self.order.shapes,
            profile,
            cache,
            scratch,
            one_shape=rows is not None,
        )


class BoundContexts(Closing):
    """Contexts and their buffers, on a stream of their own.

    What is opened is closed in the opposite order, once the stream is at rest.

    Parameters
    ----------
    plan : whose contexts these are.
    """

    _profiles: tuple[str, ...]  # the kind's own; the first has the most rows

    def __init__(self, plan: OpenedPlan) -> None:
        self._plan = plan
        self._gpu = plan.gpu
        ranges = plan.ranges(self._profiles[0])
        self._rows = plan.order.shapes.images(self._profiles[0])[1]
        library = plan.order.library
        doing = f"{library.flavour}: opening a context for {self._rows} {self._profiles[0]} rows"
        with device_errors(doing):
            self._stream = self._gpu.new_stream()
        self._owned = contextlib.ExitStack()
        own = self._owned.enter_context
        own(self._stream)
        try:
            with device_errors(doing):
                self._inputs = {
                    name: own(
                        self._gpu.zeros(most, _INPUT_DTYPES.get(name, np.int64), self._stream)
                    )
                    for name, (_, _, most) in ranges.items()
                }
                self._outputs = {
                    name: own(self._gpu.allocate((self._rows, *row), np.float32, self._stream))
                    for name, row in plan.outputs().items()
                }
                self._scratch = plan.scratch(self._profiles, self._stream)
                if self._scratch is not None:
                    own(self._scratch)
                self._open(own)
        except BaseException:
            with contextlib.suppress(Exception):
                self.close()
            raise

    def _open(self, own: Any) -> None:
        """The contexts, and what else the kind needs; `own` takes what is to be closed."""
        raise NotImplementedError

    def _new_context(self, profile: str, rows: int | None = None) -> Context:
        """A context bound to the buffers; for `rows` alone, and one shape, where they are given."""
        context = self._plan.context(profile, self._stream, self._scratch, rows)
        try:
            for name, array in {**self._inputs, **self._outputs}.items():
                context.bind(name, array)
        except BaseException:
            context.close()
            raise
        return context

    def _upload(self, name: str, array: NDArray[Any], pinned: PinnedBuffer) -> None:
        """Queue the copy of an array to the start of an input."""
        pinned.write(array)
        pinned.copy_to(self._inputs[name].part(0, array.shape, array.dtype), self._stream)

    def _first_rows(self, name: str, rows: int) -> DeviceArray:
        output = self._outputs[name]
        return output.part(0, (rows, *output.shape[1:]), np.float32)

    def close(self) -> None:
        try:
            if not self._stream.closed:
                self._stream.synchronise()
        finally:
            self._owned.close()


class ScoreContext(BoundContexts):
    """Blends and scores batches of 1 to `shapes.batch_size` rows, by the smallest recorded pass.

    Rows of the pass that a batch does not fill keep what they had, which is finite; nobody looks at
    their scores.
    """

    _profiles = (SCORE, SHORT)

    def __init__(self, plan: OpenedPlan, launcher: KernelLauncher) -> None:
        self._launcher = launcher
        self._pinned_images: PinnedBuffer | None = None
        super().__init__(plan)

    def _open(self, own: Any) -> None:
        shape = self._inputs[INPUT].shape

        def shapes_of(rows: int) -> dict[str, tuple[int, ...]]:
            return {INPUT: (rows, *shape[1:])}

        self._passes = own(
            RecordedPasses(
                self._gpu,
                self._stream,
                self._rows,
                lambda rows: self._new_context(SCORE if rows == self._rows else SHORT, rows),
                shapes_of,
                of_library=self._plan.compiles_when_it_runs,
            )
        )
        self._blender = own(Blender(self._gpu, self._launcher, self._stream))
        self._blender.reserve(shape)
        self._pinned_scores = own(PinnedBuffer(self._outputs[PROBABILITIES].nbytes))

    def score(self, batch: PixelBatch) -> Scores:
        """Scores of the rows of a batch, timed by the device's own clock."""
        start = self._stream.record(timed=True)
        self._blender.blend(batch.images, batch.masks, batch.perturbations, self._inputs[INPUT])
        blended = self._stream.record(timed=True)
        self._passes.run(batch.rows)
        end = self._stream.record(timed=True)
        probabilities = self._scores(batch.rows)
        return Scores(probabilities, (blended - start) / 1000, (end - blended) / 1000)

    def predict(self, images: FloatArray) -> FloatArray:
        """(N,3,H,W) float32 to (N,C) float32, for an N that fits."""
        if self._pinned_images is None:
            size = self._inputs[INPUT].nbytes
            self._pinned_images = self._owned.enter_context(PinnedBuffer(size))
        self._upload(INPUT, images, self._pinned_images)
        self._passes.run(len(images))
        return self._scores(len(images))

    def _scores(self, rows: int) -> FloatArray:
        part = self._first_rows(PROBABILITIES, rows)
        self._pinned_scores.copy_from(part, self._stream)
        self._stream.synchronise()
        scores: FloatArray = self._pinned_scores.read(part.shape, np.float32)
        return scores
