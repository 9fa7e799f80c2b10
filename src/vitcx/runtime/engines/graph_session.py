"""A session whose engine runs the bundle's own graphs, and is asked for their outputs by name."""

from __future__ import annotations

import abc

from vitcx.runtime.engines.session import FloatArray, Session
from vitcx.runtime.manifest import EMBEDDING, PROBABILITIES, TOKENS


class GraphSession(Session):
    """Encodes by the encoder's graph. A subclass says how its engine runs it."""

    @abc.abstractmethod
    def _encoded(self, images: FloatArray, *outputs: str) -> list[FloatArray]:
        """The outputs of that name, for (N,3,H,W) float32."""

    def _encode(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        probabilities, embedding = self._encoded(images, PROBABILITIES, EMBEDDING)
        return probabilities, embedding

    def _encode_tokens(self, images: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        if not self.scores_teams:
            return super()._encode_tokens(images)
        probabilities, embedding, tokens = self._encoded(images, PROBABILITIES, EMBEDDING, TOKENS)
        return probabilities, embedding, tokens
