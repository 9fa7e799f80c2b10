"""A bundle's graphs on ONNX Runtime, their buffers on the device, and the stream they run on.

The mask batch is blended straight into the graph's input, on the stream that the graph runs on: no
row visits the host. For one thread: the one that made it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcx.kernels.closing import Closing
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.gpu.launcher import KernelLauncher
from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.batch_sizes import batch_sizes
from vitcx.runtime.engines.device_masks import joined, open_mask_space
from vitcx.runtime.engines.ort_cuda.bound_graph import BatchPasses, Shapes
from vitcx.runtime.engines.ort_cuda.bound_teams import BoundTeams
from vitcx.runtime.engines.ort_cuda.target import Opener, Target
from vitcx.runtime.engines.ort_cuda.transfers import Transfers
from vitcx.runtime.engines.session import EncodedMasks
from vitcx.runtime.errors import BundleError
from vitcx.runtime.graph_interface import interfaces_of, token_shape_of
from vitcx.runtime.manifest import EMBEDDING, INPUT, PROBABILITIES, TOKENS
from vitcx.runtime.onnx_runtime import interface_of_session

FloatArray = NDArray[np.float32]

# Most images of one encoding: their embeddings take much more memory than probabilities.
ENCODE_IMAGES = 8


class BoundBundle(Closing):
    """The graphs that score, encode and score teams, on one stream. A context manager.

    Opening runs a pass of each size that is recorded and a full encoding, so that what opens has
    all the memory it needs.

    Parameters
    ----------
    ort : the module onnxruntime.
    target : where to run.
    gpu : the device, current for this thread.
    launcher : of our kernels on it.
    batch_size : rows of a full batch.
    record : whether passes of `batch_sizes` become CUDA graphs; without, a pass has as many rows as
        its batch.
    threads : on the CPU, for the few nodes that compute shapes.

    Attributes
    ----------
    images : (batch_size,3,H,W) float32 on the device: what the graph that scores reads.
    stream : on which all runs.
    transfers : on the stream.
    teams : the graph that scores teams; None where the bundle has none.
    """

    def __init__(
        self,
        ort: Any,
        bundle: Bundle,
        target: Target,
        gpu: Gpu,
        launcher: KernelLauncher,
        batch_size: int,
        *,
        record: bool,
        threads: int = 1,
    ) -> None:
        manifest = bundle.manifest
        self._batch_size = batch_size
        self._encode_images = min(ENCODE_IMAGES, batch_size)
        self.teams: BoundTeams | None = None
        sizes = batch_sizes(batch_size) if record else ()
        scores, encodes, teams = interfaces_of(bundle)
        with contextlib.ExitStack() as owned:
            self.stream = owned.enter_context(gpu.new_stream())
            self.transfers = owned.enter_context(Transfers(self.stream))
            owned.callback(self.stream.synchronise)

            def zeros(*shape: int) -> DeviceArray:
                return owned.enter_context(gpu.zeros(shape, np.float32, self.stream))

            image = (manifest.input_channels, *manifest.input_size)
            self.images = zeros(batch_size, *image)
            self._probabilities = zeros(batch_size, manifest.num_classes)
            buffers = {INPUT: self.images, PROBABILITIES: self._probabilities}
            self._encoded = {
                PROBABILITIES: self._probabilities,
                EMBEDDING: zeros(self._encode_images, manifest.channels, *manifest.grid),
            }
            # Before the buffers: a recorded graph names their addresses.
            owned.callback(self._forget)
            opener = Opener(ort, target, gpu, self.stream, threads)
            scorer = encoder = opener.open(bundle.model_path, scores, record=record)
            if bundle.encoder is not bundle:
                encoder = opener.open(bundle.encoder.model_path, encodes, record=False)
            self._scorer = BatchPasses(
                opener.bind(scorer, buffers),
                lambda rows: _first(rows, buffers),
                sizes,
            )
            self._scorer.run_each(batch_size)
            if teams is not None:
                self.teams = owned.enter_context(
                    BoundTeams(opener, bundle, teams, self._probabilities, sizes)
                )
                given = token_shape_of(
                    f"'{bundle.encoder.model_path}'", interface_of_session(encoder)
                )
                if given != self.teams.token_shape:
                    raise BundleError(
                        f"the encoder of '{bundle.path}' gives tokens {given} and the graph that "
                        f"scores teams takes {self.teams.token_shape}: export the model again"
                    )
                self._encoded[TOKENS] = zeros(self._encode_images, *given)
            self._encoder = opener.bind(encoder, {INPUT: self.images, **self._encoded})
            self._run_encoder(self._encode_images, tuple(self._encoded))
            self._masks = open_mask_space(
                gpu, launcher, self.stream, self._encoded[EMBEDDING], manifest.input_size
            )
            if self._masks is not None:
                owned.enter_context(self._masks)
            self.stream.synchronise()
            self._owned = owned.pop_all()

    def run(self, rows: int) -> None:
        """Queue the graph that scores on the first rows of `images`."""
        self._scorer.run(rows)

    def probabilities(self, rows: int) -> FloatArray:
        """(rows, C) float32 of what was queued last. Blocks until it is there."""
        return self.transfers.download(self._probabilities, rows)

    def predict(self, images: FloatArray) -> FloatArray:
        """(N,3,H,W) float32 on the host to (N,C) float32, for any N."""
        parts = []
        for start in range(0, len(images), self._batch_size):
            part = images[start : start + self._batch_size]
            self.transfers.upload((part, self.images))
            self.run(len(part))
            parts.append(self.probabilities(len(part)))
        return np.concatenate(parts)

    def encode(self, images: FloatArray, *outputs: str) -> list[FloatArray]:
        """(N,3,H,W) float32 on the host to these outputs, each (N, ...) float32, for any N."""
        parts = []
        for start in range(0, len(images), self._encode_images):
            part = images[start : start + self._encode_images]
            self.transfers.upload((part, self.images))
            self._run_encoder(len(part), outputs)
            parts.append([self.transfers.download(self._encoded[o], len(part)) for o in outputs])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    @property
    def makes_masks(self) -> bool:
        """Whether `encode_masks` can be called."""
        return self._masks is not None

    def encode_masks(
        self, images: FloatArray, orders: Sequence[MaskOrder | None], *, tokens: bool
    ) -> EncodedMasks:
        """As `Session.encode_masks`."""
        assert self._masks is not None
        # The masks are made of all of the embedding, also where nobody downloads it.
        outputs = (PROBABILITIES, EMBEDDING, *((TOKENS,) if tokens else ()))
        parts = []
        for start in range(0, len(images), self._encode_images):
            part = images[start : start + self._encode_images]
            self.transfers.upload((part, self.images))
            self._run_encoder(len(part), outputs)
            self._masks.queue(orders[start : start + len(part)])
            probabilities = self.probabilities(len(part))
            given = self.transfers.download(self._encoded[TOKENS], len(part)) if tokens else None
            parts.append(EncodedMasks(probabilities, self._masks.collect(), given))
        return joined(parts)

    def close(self) -> None:
        """Free everything on the device, after the stream has passed what is queued."""
        self._owned.close()

    def _forget(self) -> None:
        # An attempt that failed may have come less far.
        self.__dict__.pop("_scorer", None)
        self.__dict__.pop("_encoder", None)

    def _run_encoder(self, rows: int, outputs: tuple[str, ...]) -> None:
        """Queue the encoder on the first rows of `images`."""
        wanted = {name: self._encoded[name] for name in outputs}
        self._encoder.run(_first(rows, {INPUT: self.images, **wanted}))


def _first(rows: int, buffers: dict[str, DeviceArray]) -> Shapes:
    """The shapes of the buffers' first rows."""
    return {name: (rows, *array.shape[1:]) for name, array in buffers.items()}
