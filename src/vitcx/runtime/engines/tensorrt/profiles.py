"""The batches that a plan is made for: one optimisation profile encodes, one scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitcx.runtime.errors import InputError

# The optimisation profiles.
ENCODE, SCORE = "encode", "score"


@dataclass(frozen=True)
class Shapes:
    """Batches that a plan is made for.

    Attributes
    ----------
    encode_images : most images of one `encode`, at least 1.
    batch_size : rows of a mask batch, at least 1; `score` always runs that many.
    profiles : which the plan has, in the order of their indices.
    """

    encode_images: int = 8
    batch_size: int = 64
    profiles: tuple[str, ...] = (ENCODE, SCORE)

    def __post_init__(self) -> None:
        if min(self.encode_images, self.batch_size) < 1:
            raise InputError(f"{self}: both must be at least 1")

    @classmethod
    def of_session(cls, batch_size: int, encode_images: int | None = None) -> Shapes:
        """Those that a session opens with; a plan built ahead is found only with the same ones."""
        most = cls.encode_images if encode_images is None else encode_images
        return cls(min(most, batch_size), batch_size)

    def only(self, profile: str) -> Shapes:
        """Those of a plan with one profile. The other's number is 1: the plan does not depend on
        it, and neither may its key.
        """
        if profile == ENCODE:
            return replace(self, batch_size=1, profiles=(ENCODE,))
        return replace(self, encode_images=1, profiles=(SCORE,))

    def images(self, profile: str) -> tuple[int, int]:
        """The least and the most images of a profile."""
        return (1, self.encode_images) if profile == ENCODE else (self.batch_size, self.batch_size)
