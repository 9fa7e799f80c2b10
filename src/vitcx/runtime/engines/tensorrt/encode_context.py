"""What one thread needs to encode pictures on TensorRT, and to make their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.gpu.device import PinnedBuffer
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.engines.device_masks import open_mask_space
from vitcx.runtime.engines.session import EncodedMasks
from vitcx.runtime.engines.tensorrt.bound_contexts import BoundContexts, OpenedPlan
from vitcx.runtime.engines.tensorrt.profiles import ENCODE
from vitcx.runtime.manifest import EMBEDDING, INPUT, PROBABILITIES, TOKENS

FloatArray = NDArray[np.float32]


class EncodeContext(BoundContexts):
    """Encodes 1 to `shapes.encode_images` images, and makes their masks where it can.

    Attributes
    ----------
    makes_masks : whether it can.
    """

    _profiles = (ENCODE,)

    def __init__(self, plan: OpenedPlan, launcher: KernelLauncher) -> None:
        self._launcher = launcher
        super().__init__(plan)

    def _open(self, own: Any) -> None:
        self._context = own(self._new_context(ENCODE))
        images = self._inputs[INPUT]
        self._context.set_shapes({INPUT: images.shape})
        # The first pass loads kernels, and shows whether the memory is enough.
        self._context.enqueue(self._stream)
        self._stream.synchronise()
        self._context.keep_runtime_cache()
        self._pinned_images = own(PinnedBuffer(images.nbytes))
        self._pinned_outputs = {
            name: own(PinnedBuffer(array.nbytes)) for name, array in self._outputs.items()
        }
        embedding = self._outputs[EMBEDDING]
        size = self._plan.order.bundle.manifest.input_size
        self._masks = open_mask_space(self._gpu, self._launcher, self._stream, embedding, size)
        self.makes_masks = self._masks is not None
        if self._masks is not None:
            own(self._masks)

    def encode(self, images: FloatArray, *outputs: str) -> list[FloatArray]:
        """(N,3,H,W) float32, for an N that fits, to these outputs, each (N, ...) float32."""
        self._run(images)
        return self._download(len(images), *outputs)

    def encode_masks(
        self, images: FloatArray, orders: Sequence[MaskOrder | None], *, tokens: bool
    ) -> EncodedMasks:
        """As `Session.encode_masks`, for an N that fits."""
        assert self._masks is not None
        self._run(images)
        self._masks.queue(orders)
        outputs = (PROBABILITIES, TOKENS) if tokens else (PROBABILITIES,)
        probabilities, *others = self._download(len(images), *outputs)
        return EncodedMasks(probabilities, self._masks.collect(), others[0] if others else None)

    def _run(self, images: FloatArray) -> None:
        self._upload(INPUT, images, self._pinned_images)
        self._context.set_shapes({INPUT: images.shape})
        self._context.enqueue(self._stream)

    def _download(self, rows: int, *outputs: str) -> list[FloatArray]:
        parts = {name: self._first_rows(name, rows) for name in outputs}
        for name, part in parts.items():
            self._pinned_outputs[name].copy_from(part, self._stream)
        self._stream.synchronise()
        return [
            self._pinned_outputs[name].read(part.shape, np.float32) for name, part in parts.items()
        ]
