"""What one thread needs to score teams of tokens on TensorRT."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitcx.kernels.gpu.device import PinnedBuffer
from vitcx.kernels.team_size import team_size
from vitcx.runtime.engines.session import Scores, TeamBatch
from vitcx.runtime.engines.tensorrt.bound_contexts import BoundContexts
from vitcx.runtime.engines.tensorrt.profiles import TEAMS
from vitcx.runtime.engines.tensorrt.recorded_passes import RecordedPasses
from vitcx.runtime.manifest import PATCHES, PICTURES, PROBABILITIES, TOKENS


class TeamContext(BoundContexts):
    """Scores batches of 1 to `shapes.batch_size` teams.

    Teams of half of the patches, which is the setting's default, go by recorded passes; teams of
    another size by a context whose shapes change. The tokens of a batch's pictures go up with it.

    What a batch does not fill keeps what it had, which is finite, and indices that are in range;
    nobody looks at those rows' scores.
    """

    _profiles = (TEAMS,)

    def _open(self, own: Any) -> None:
        self._patches = self._inputs[PATCHES].shape[1]
        self._half = team_size(self._patches)
        # The one that needs the most is run first: it shows whether the memory is enough.
        self._any_size = own(self._new_context(TEAMS))
        self._any_size.set_shapes(self._shapes(self._rows, self._patches))
        self._any_size.enqueue(self._stream)
        self._stream.synchronise()
        self._any_size.keep_runtime_cache()
        self._halves = own(
            RecordedPasses(
                self._gpu,
                self._stream,
                self._rows,
                lambda rows: self._new_context(TEAMS, rows),
                lambda rows: self._shapes(rows, self._half),
                of_library=self._plan.compiles_when_it_runs,
            )
        )
        self._pinned = {
            name: own(PinnedBuffer(array.nbytes)) for name, array in self._inputs.items()
        }
        self._pinned_scores = own(PinnedBuffer(self._outputs[PROBABILITIES].nbytes))

    def score(self, batch: TeamBatch) -> Scores:
        """Scores of the rows of a batch, timed by the device's own clock."""
        start = self._stream.record(timed=True)
        patches = np.stack(batch.patches)
        for name, array in (
            (TOKENS, np.stack(batch.tokens)),
            (PICTURES, np.asarray(batch.pictures, dtype=np.int64)),
            (PATCHES, patches),
        ):
            self._upload(name, array, self._pinned[name])
        uploaded = self._stream.record(timed=True)
        rows, size = patches.shape
        if size == self._half:
            self._halves.run(rows)
        else:
            self._any_size.set_shapes(self._shapes(rows, size))
            self._any_size.enqueue(self._stream)
        end = self._stream.record(timed=True)
        part = self._first_rows(PROBABILITIES, rows)
        self._pinned_scores.copy_from(part, self._stream)
        self._stream.synchronise()
        return Scores(
            self._pinned_scores.read(part.shape, np.float32),
            (uploaded - start) / 1000,
            (end - uploaded) / 1000,
        )

    def _shapes(self, rows: int, size: int) -> dict[str, tuple[int, ...]]:
        """The inputs' shapes for rows of teams of a size."""
        return {
            TOKENS: self._inputs[TOKENS].shape,
            PICTURES: (rows,),
            PATCHES: (rows, size),
        }
