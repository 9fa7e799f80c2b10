"""The graph that scores teams of tokens, on ONNX Runtime, with its buffers on the device."""

from __future__ import annotations

import contextlib
import math

import numpy as np

from vitcx.kernels.closing import Closing
from vitcx.kernels.gpu.arrays import DeviceArray
from vitcx.kernels.team_size import team_size
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.ort_cuda.bound_graph import BatchPasses, Shapes
from vitcx.runtime.engines.ort_cuda.target import Opener
from vitcx.runtime.engines.ort_cuda.transfers import Transfers
from vitcx.runtime.engines.session import TeamBatch
from vitcx.runtime.graph_interface import Interface, token_shape_of
from vitcx.runtime.manifest import PATCHES, PICTURES, PROBABILITIES, TOKENS
from vitcx.runtime.onnx_runtime import interface_of_session


class BoundTeams(Closing):
    """Scores batches of teams. A context manager, for one thread.

    Teams of half of the patches, which is the setting's default, go by recorded passes; teams of
    another size node by node. The tokens of a batch's pictures go up with it.

    Parameters
    ----------
    bundle : that has the graph.
    expected : of the graph.
    probabilities : (batch_size,C) float32 on the device, written.
    sizes : rows of the recorded passes; none where nothing is recorded.

    Attributes
    ----------
    token_shape : (T,W) of a picture's tokens.
    """

    def __init__(
        self,
        opener: Opener,
        bundle: Bundle,
        expected: Interface,
        probabilities: DeviceArray,
        sizes: tuple[int, ...],
    ) -> None:
        manifest = bundle.manifest
        assert manifest.token_grid is not None
        self._patches = math.prod(manifest.token_grid)
        self._half = team_size(self._patches)
        self._classes = manifest.num_classes
        rows = probabilities.shape[0]
        with contextlib.ExitStack() as owned:
            session = opener.open(bundle.teams_path, expected, record=bool(sizes))
            self.token_shape = token_shape_of(
                f"'{bundle.teams_path}'", interface_of_session(session)
            )
            self._inputs = {
                # What a batch does not fill is computed too: patches there must exist.
                name: owned.enter_context(opener.gpu.zeros(shape, dtype, opener.stream))
                for name, shape, dtype in (
                    (TOKENS, (rows, *self.token_shape), np.float32),
                    (PICTURES, (rows,), np.int64),
                    (PATCHES, (rows, self._patches), np.int64),
                )
            }
            owned.callback(self._forget)
            self._graph = opener.bind(session, {**self._inputs, PROBABILITIES: probabilities})
            self._halves = BatchPasses(self._graph, lambda n: self._shapes(n, self._half), sizes)
            self._graph.run(self._shapes(rows, self._patches))  # the one that needs the most
            self._halves.run_each(rows)
            self._owned = owned.pop_all()

    def upload(self, batch: TeamBatch, transfers: Transfers) -> None:
        """Queue the copies of a batch."""
        transfers.upload(
            (np.stack(batch.tokens), self._inputs[TOKENS]),
            (np.asarray(batch.pictures, dtype=np.int64), self._inputs[PICTURES]),
            (np.stack(batch.patches), self._inputs[PATCHES]),
        )

    def run(self, rows: int, size: int) -> None:
        """Queue the graph on the first rows, which are teams of that size."""
        if size == self._half:
            self._halves.run(rows)
        else:
            self._graph.run(self._shapes(rows, size))

    def close(self) -> None:
        """Free the graph and its buffers; the stream must be at rest."""
        self._owned.close()

    def _forget(self) -> None:
        # An attempt that failed may have come less far.
        self.__dict__.pop("_graph", None)
        self.__dict__.pop("_halves", None)

    def _shapes(self, rows: int, size: int) -> Shapes:
        return {
            TOKENS: self._inputs[TOKENS].shape,
            PICTURES: (rows,),
            PATCHES: (rows, size),
            PROBABILITIES: (rows, self._classes),
        }
