"""What masks are to be made of a picture's embedding, for who makes them on a device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MaskOrder:
    """The masks of an embedding's channels, clustered.

    Attributes
    ----------
    distance_threshold : of the clusters; None leaves each channel's mask by itself.
    renormalised : whether a cluster's mask is stretched to [0, 1] again, and not the mean of its
        members.
    """

    distance_threshold: float | None = None
    renormalised: bool = False
