"""The batches that a plan is made for, each by an optimisation profile."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vitcx.kernels.team_size import team_size
from vitcx.runtime.engines.batch_sizes import batch_sizes
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import INPUT, PATCHES, PICTURES, TOKENS, Manifest

# The optimisation profiles: of the graph that encodes; of the one that scores, for full batches
# and for shorter ones; and of the one that scores teams.
ENCODE, SCORE, SHORT, TEAMS = "encode", "score", "short", "teams"

Shape = tuple[int, ...]
# An input's smallest shape, the one that is optimised for, and the largest.
Range = tuple[Shape, Shape, Shape]


@dataclass(frozen=True)
class Shapes:
    """Batches that a plan is made for.

    Attributes
    ----------
    encode_images : most images of one `encode`, at least 1.
    batch_size : rows of a full batch, at least 1.
    profiles : which the plan has, in the order of their indices.
    """

    encode_images: int = 8
    batch_size: int = 64
    profiles: tuple[str, ...] = (ENCODE, SCORE, SHORT)

    def __post_init__(self) -> None:
        if min(self.encode_images, self.batch_size) < 1:
            raise InputError(f"{self}: both must be at least 1")

    @classmethod
    def of_session(cls, batch_size: int, encode_images: int | None = None) -> Shapes:
        """Those that a session opens with; a plan built ahead is found only with the same ones."""
        most = cls.encode_images if encode_images is None else encode_images
        return cls(min(most, batch_size), batch_size)

    def only(self, *profiles: str) -> Shapes:
        """Those of a plan with these profiles. A number that they do not use is 1: the plan does
        not depend on it, and neither may its key.
        """
        if profiles == (ENCODE,):
            return replace(self, batch_size=1, profiles=profiles)
        return replace(self, encode_images=1, profiles=profiles)

    def images(self, profile: str) -> tuple[int, int]:
        """The least and the most rows of a profile."""
        sizes = batch_sizes(self.batch_size)
        short = sizes[:-1] or sizes
        return {
            ENCODE: (1, self.encode_images),
            SCORE: (self.batch_size, self.batch_size),
            SHORT: (short[0], short[-1]),
            TEAMS: (1, self.batch_size),
        }[profile]

    def ranges(self, profile: str, manifest: Manifest, token_shape: Shape = ()) -> dict[str, Range]:
        """The shapes of a profile's inputs, by name.

        Teams have room for the tokens of as many pictures as there are rows: which of them a row
        takes is a number, so those that nobody takes cost nothing. What they are optimised for is
        half of the patches.

        Parameters
        ----------
        token_shape : (T,W) of a picture's tokens, where the profile is `TEAMS`.
        """
        least, most = self.images(profile)
        if profile == TEAMS:
            assert manifest.token_grid is not None
            patches = math.prod(manifest.token_grid)
            tokens = (most, *token_shape)
            return {
                TOKENS: (tokens, tokens, tokens),
                PICTURES: ((1,), (most,), (most,)),
                PATCHES: ((1, 1), (most, team_size(patches)), (most, patches)),
            }
        size = (manifest.input_channels, *manifest.input_size)
        best = least if profile == ENCODE else most
        return {INPUT: ((least, *size), (best, *size), (most, *size))}
