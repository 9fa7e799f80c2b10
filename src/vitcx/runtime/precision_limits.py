"""When a bundle of a reduced precision is too far from float32 to be trusted.

Export measures what a precision costs on pictures (`Manifest.precision_figures`); the runtime holds
the figures against the limits here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from vitcx.runtime.errors import BundleError
from vitcx.runtime.manifest import Manifest

log = logging.getLogger("vitcx")

EXACT = "fp32"


@dataclass(frozen=True)
class Limit:
    """The least (or, where `is_least` is False, the most) that a figure may be, in words too."""

    figure: str
    bound: float
    is_least: bool
    words: str


LIMITS = (
    # A flip is a tie that rounding broke, or another model. DeiT-Tiny's own errors are one in five.
    Limit("top1_agreement", 0.95, True, "the share of pictures with the same likeliest class"),
    # With masks from a float32 encoder, DeiT-Tiny's maps have 0.994 (int8) and more. Masks from a
    # reduced graph are others, since clusters are cut at a threshold: 0.89 in bf16 and int8, and
    # single maps down to 0.1. Two seeds of the noise agree to 0.93 on average, so a precision below
    # this changes more than they do.
    Limit("rank_correlation_median", 0.95, True, "the median rank correlation of the maps"),
    Limit(
        "rank_correlation_same_noise_median",
        0.95,
        True,
        "the median rank correlation of the maps with noise",
    ),
    # Insertion minus deletion is 0.27 on DeiT-Tiny, and 0 for a random map: a 27th part of it. The
    # near end of the interval, so that few pictures do not refuse a bundle by chance.
    Limit("deletion_change_low", 0.01, False, "the loss of deletion area, with 97.5 % certainty,"),
    Limit("insertion_change_high", -0.01, True, "the change of insertion area, likewise,"),
)


def check_precision(manifest: Manifest, *, allow_imprecise: bool = False) -> None:
    """Refuse a reduced precision whose figures are missing or beyond a limit.

    Parameters
    ----------
    manifest : of the bundle.
    allow_imprecise : warn in the log instead.

    Raises
    ------
    BundleError
        Names the first figure that is beyond its limit, and what to do.
    """
    problem = precision_problem(manifest)
    if problem is None:
        return
    if not allow_imprecise:
        raise BundleError(
            f"{problem}: export it in a higher precision, or load it with allow_imprecise=True "
            "(--allow-imprecise)"
        )
    log.warning("%s; loaded all the same, as asked", problem)


def precision_problem(manifest: Manifest) -> str | None:
    """What speaks against the bundle's precision; None if nothing does."""
    if manifest.precision == EXACT:
        return None
    name = f"the bundle of {manifest.model_name} in {manifest.precision}"
    figures = manifest.precision_figures
    for limit in LIMITS:
        if limit.figure not in figures:
            return (
                f"{name} does not say how far it is from fp32 (its manifest lacks the figure "
                f"{limit.figure})"
            )
        found = figures[limit.figure]
        fits = found >= limit.bound if limit.is_least else found <= limit.bound
        if not fits:  # NaN does not
            return (
                f"{name} is too far from fp32: {limit.words} is {found:.3g} on "
                f"{figures.get('images', float('nan')):.0f} pictures ({limit.figure}), the limit "
                f"is at {'least' if limit.is_least else 'most'} {limit.bound:g}"
            )
    return None
