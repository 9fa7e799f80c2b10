"""How many patches a team keeps: for estimators, and for engines that record passes."""

from __future__ import annotations

import math

DEFAULT_TEAM_SHARE = 0.5


def team_size(patches: int, share: float = DEFAULT_TEAM_SHARE) -> int:
    """How many of so many patches a team keeps: at least 1, at most all but 1 (of one patch, 1).

    Halves are rounded up: of 49 patches a team of one half keeps 25.
    """
    return max(1, min(patches - 1, math.floor(share * patches + 0.5)))
