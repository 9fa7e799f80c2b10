"""What one thread needs to encode, or to score, on TensorRT: a context bound to its buffers.

With it go a stream and, for scoring, a CUDA graph. Nothing is allocated and no address changes once
it is made: a CUDA graph holds on to both.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.errors import first_line
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.blending import Blender
from vitcx.kernels.gpu.device import CudaGraph, Gpu, PinnedBuffer
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.runtime.device_errors import device_errors, is_out_of_memory
from vitcx.runtime.engines.session import PixelBatch, Scores
from vitcx.runtime.engines.tensorrt.context import Context
from vitcx.runtime.engines.tensorrt.library import Library
from vitcx.runtime.engines.tensorrt.profiles import ENCODE, SCORE, Shapes
from vitcx.runtime.engines.tensorrt.runtime_cache import RuntimeCache
from vitcx.runtime.manifest import EMBEDDING, INPUT, PROBABILITIES, Manifest

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger("vitcx")

FloatArray = NDArray[np.float32]


class _BoundContext(Closing):
    """A context with its buffers, on a stream of its own; the profile's most images in each.

    What is opened is closed in the opposite order, once the stream is at rest.
    """

    _profile: str  # the kind's own

    def __init__(
        self,
        library: Library,
        engine: trt.ICudaEngine,
        gpu: Gpu,
        manifest: Manifest,
        shapes: Shapes,
        runtime_cache: RuntimeCache | None,
    ) -> None:
        self._gpu = gpu
        images = shapes.images(self._profile)[1]
        self._shape = (images, manifest.input_channels, *manifest.input_size)
        doing = f"{library.flavour}: opening a context for {images} images"
        with device_errors(doing):
            self._stream = gpu.new_stream()
        self._owned = contextlib.ExitStack()
        own = self._owned.enter_context
        own(self._stream)
        try:
            with device_errors(doing):
                self._input = own(gpu.zeros(self._shape, np.float32, self._stream))
                self._outputs = {
                    name: own(gpu.allocate((images, *shape), np.float32, self._stream))
                    for name, shape in (
                        (PROBABILITIES, (manifest.num_classes,)),
                        (EMBEDDING, (manifest.channels, *manifest.grid)),
                    )
                }
                self._context = own(
                    Context(
                        library, engine, gpu, self._stream, shapes, self._profile, runtime_cache
                    )
                )
                self._context.bind(INPUT, self._input)
                for name, array in self._outputs.items():
                    self._context.bind(name, array)
                self._context.set_shape(self._shape)
                # The first pass loads kernels, and shows whether the memory is enough.
                self._context.enqueue(self._stream)
                self._stream.synchronise()
                self._context.keep_runtime_cache()
                self._prepare(own)
        except BaseException:
            with contextlib.suppress(Exception):
                self.close()
            raise

    def _prepare(self, own: Any) -> None:
        """What else the kind needs; `own` takes what is to be closed with it."""
        raise NotImplementedError

    def _upload(self, images: FloatArray, pinned: PinnedBuffer) -> None:
        """Queue the copy of some images to the first rows of the input."""
        pinned.write(images)
        pinned.copy_to(self._input.part(0, images.shape, np.float32), self._stream)

    def _first_rows(self, name: str, rows: int) -> DeviceArray:
        output = self._outputs[name]
        return output.part(0, (rows, *output.shape[1:]), np.float32)

    def close(self) -> None:
        try:
            if not self._stream.closed:
                self._stream.synchronise()
        finally:
            self._owned.close()


class EncodeContext(_BoundContext):
    """Encodes 1 to `shapes.encode_images` images."""

    _profile = ENCODE

    def _prepare(self, own: Any) -> None:
        self._pinned_images = own(PinnedBuffer(self._input.nbytes))
        self._pinned_outputs = {
            name: own(PinnedBuffer(array.nbytes)) for name, array in self._outputs.items()
        }

    def encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(N,3,H,W) float32 to probabilities (N,C) and embedding (N,D,h,w), for an N that fits."""
        self._upload(images, self._pinned_images)
        self._context.set_shape((len(images), *self._shape[1:]))
        self._context.enqueue(self._stream)
        parts = {name: self._first_rows(name, len(images)) for name in self._outputs}
        for name, part in parts.items():
            self._pinned_outputs[name].copy_from(part, self._stream)
        self._stream.synchronise()
        probabilities, embedding = (
            self._pinned_outputs[name].read(parts[name].shape, np.float32)
            for name in (PROBABILITIES, EMBEDDING)
        )
        return probabilities, embedding


class ScoreContext(_BoundContext):
    """Blends and scores batches of exactly `shapes.batch_size` rows.

    Rows that a batch does not fill keep what they had, which is finite; nobody looks at their
    scores.
    """

    _profile = SCORE

    def __init__(
        self,
        library: Library,
        engine: trt.ICudaEngine,
        gpu: Gpu,
        manifest: Manifest,
        launcher: KernelLauncher,
        shapes: Shapes,
        runtime_cache: RuntimeCache | None,
    ) -> None:
        self._launcher = launcher
        self._library = library
        self._pinned_images: PinnedBuffer | None = None
        super().__init__(library, engine, gpu, manifest, shapes, runtime_cache)

    def _prepare(self, own: Any) -> None:
        self._blender = own(Blender(self._gpu, self._launcher, self._stream))
        self._blender.reserve(self._shape)
        self._pinned_scores = own(PinnedBuffer(self._outputs[PROBABILITIES].nbytes))
        self._cuda_graph = self._record()
        if self._cuda_graph is not None:
            own(self._cuda_graph)
            self._cuda_graph.launch(self._stream)
            self._stream.synchronise()

    def score(self, batch: PixelBatch) -> Scores:
        """Scores of the rows of a batch, timed by the device's own clock."""
        start = self._stream.record(timed=True)
        self._blender.blend(batch.images, batch.masks, batch.perturbations, self._input)
        blended = self._stream.record(timed=True)
        self._forward()
        end = self._stream.record(timed=True)
        probabilities = self._scores(batch.rows)
        return Scores(probabilities, (blended - start) / 1000, (end - blended) / 1000)

    def predict(self, images: FloatArray) -> FloatArray:
        """(N,3,H,W) float32 to (N,C) float32, for an N that fits."""
        if self._pinned_images is None:
            self._pinned_images = self._owned.enter_context(PinnedBuffer(self._input.nbytes))
        self._upload(images, self._pinned_images)
        self._forward()
        return self._scores(len(images))

    def _forward(self) -> None:
        if self._cuda_graph is None:
            self._context.enqueue(self._stream)
        else:
            self._cuda_graph.launch(self._stream)

    def _scores(self, rows: int) -> FloatArray:
        part = self._first_rows(PROBABILITIES, rows)
        self._pinned_scores.copy_from(part, self._stream)
        self._stream.synchronise()
        scores: FloatArray = self._pinned_scores.read(part.shape, np.float32)
        return scores

    def _record(self) -> CudaGraph | None:
        """The forward pass as a CUDA graph. The blend stays outside: its arguments vary.

        TensorRT-RTX makes its own (see `context`).
        """
        if self._library.flavour == "tensorrt-rtx":
            if not self._context.can_be_captured(self._stream):
                _warn_of_no_graph("TensorRT-RTX says that this plan's pass cannot be captured")
            # It captures the second pass, not the first: so its memory is taken here too.
            self._context.enqueue(self._stream)
            self._stream.synchronise()
            return None
        try:
            return self._gpu.record_cuda_graph(self._stream, self._context.enqueue)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            _warn_of_no_graph(first_line(error))
            return None


def _warn_of_no_graph(reason: str) -> None:
    log.warning("no CUDA graph of a forward pass, its kernels go one by one: %s", reason)
