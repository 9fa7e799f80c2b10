"""How to explain: one type for Python, the command line, the server and data-set jobs.

Each field carries its rule (what values it takes) and its help, so that options, schemas and
messages are made from one place.
"""

# ruff: noqa: RUF009  (`_setting` makes a field)
from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict, get_args

from vitcx.kernels.host.philox import SEED_LIMIT
from vitcx.kernels.team_size import DEFAULT_TEAM_SHARE
from vitcx.runtime.errors import InputError
from vitcx.runtime.presets import PresetName

MethodName = Literal["vit-cx", "score-cam", "rise", "occlusion", "random-cx"]
EstimatorName = Literal[
    "paper", "fast", "antithetic", "teams", "teams-dropped", "teams-difference", "teams-fit"
]
ClusterMasks = Literal["renormalised", "mean", "none"]
Hidden = Literal["auto", "pixels", "tokens"]


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    def accept(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise InputError(f"{name} is {value!r}, not one of {', '.join(self.words)}")
        return str(value)


@dataclass(frozen=True)
class Switch:
    """True or False."""

    def accept(self, name: str, value: Any) -> bool:
        if str(type(value).__name__) not in ("bool", "bool_"):
            raise InputError(f"{name} is {value!r}: give True or False")
        return bool(value)


@dataclass(frozen=True)
class Number:
    """A finite number in a range, both ends in it; NumPy's too."""

    least: float
    most: float

    def accept(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InputError(f"{name} is {value!r}: give a number")
        try:
            number = float(value)
        except OverflowError:  # a whole number of hundreds of digits
            number = math.inf
        if not self.least <= number <= self.most:  # NaN is not
            raise InputError(
                f"{name} is {number:g}: give a number from {self.least:g} to {self.most:g}"
            )
        return number


@dataclass(frozen=True)
class Whole:
    """A whole number in a range, both ends in it; NumPy's too."""

    least: int
    most: int

    def accept(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise InputError(f"{name} is {value!r}: give a whole number")
        number = int(value)
        if not self.least <= number <= self.most:
            shown = (
                str(number) if abs(number) < 10**20 else f"a number of {number.bit_length()} bits"
            )
            raise InputError(f"{name} is {shown}: give one from {self.least} to {self.most}")
        return number


Rule = Choice | Switch | Number | Whole


def _setting(default: Any, rule: Rule, help: str, *, optional: bool = False) -> Any:
    return field(default=default, metadata={"rule": rule, "help": help, "optional": optional})


@dataclass(frozen=True)
class Settings:
    """How to explain.

    Attributes
    ----------
    method : what the masks are; see `vitcx.runtime.method.registry.METHODS`.
    estimator : how a mask's impact is measured; see
        `vitcx.runtime.method.estimators.registry.ESTIMATORS`.
    distance_threshold : δ of the clustering, in [0, 1]. None takes the bundle's (0.1; Swin 0.05).
        A lower one gives more masks: a finer map, and a longer run.
    noise_std : σ of the noise on hidden pixels, in normalised units.
    seed : of the noise and of random masks. The same seed gives the same explanation.
    cluster_masks : ``renormalised`` (the authors' code), ``mean`` (the paper's text) or ``none``
        (every channel is a mask).
    hidden : what an estimator with teams does to hide a patch: ``pixels`` paints noise over it,
        ``tokens`` leaves its token out, ``auto`` takes tokens where the bundle and the engine can.
    team_share : the share of the patches that a team keeps.
    prior_strength : how strongly ``teams-fit`` smooths its map.
    prior_likeness : how far ``teams-fit`` credits patches alike where the masks are alike, in
        [0, 1]; the rest is for patches that are near each other.
    debias : False scores masked pictures without noise (the paper's variants 3 and 5).
    coverage_correction : False leaves out the division by ρ (the paper's variants 4 and 5).
    mask_count : of ``rise`` (None: 4000) and ``random-cx`` (None: 5000).
    window, step : of ``occlusion``, in pixels of the model's input; None takes a seventh of the
        short side, and half of that.

    Raises
    ------
    InputError
        At construction, if a value is of the wrong type or out of range.
    """

    distance_threshold: float | None = _setting(
        None,
        Number(0, 1),
        "δ of the clustering; lower gives more masks.  [default: the bundle's]",
        optional=True,
    )
    noise_std: float = _setting(0.1, Number(0, 100), "σ of the noise on hidden pixels.")
    seed: int = _setting(0, Whole(0, SEED_LIMIT - 1), "Seed of the noise and of random masks.")
    estimator: EstimatorName = _setting(
        "paper", Choice(get_args(EstimatorName)), "How the impact of a mask is measured."
    )
    debias: bool = _setting(True, Switch(), "Hide with noise, and correct for the noise.")
    coverage_correction: bool = _setting(True, Switch(), "Divide by how often a pixel was shown.")
    cluster_masks: ClusterMasks = _setting(
        "renormalised", Choice(get_args(ClusterMasks)), "What the mask of a cluster is."
    )
    method: MethodName = _setting("vit-cx", Choice(get_args(MethodName)), "What the masks are.")
    hidden: Hidden = _setting(
        "auto", Choice(get_args(Hidden)), "How the patches outside a team are hidden."
    )
    team_share: float = _setting(
        DEFAULT_TEAM_SHARE, Number(0.05, 0.95), "Share of the patches in a team."
    )
    prior_strength: float = _setting(1.0, Number(1e-6, 1e6), "How strongly teams-fit smooths.")
    prior_likeness: float = _setting(
        0.75, Number(0, 1), "How far teams-fit credits patches alike that the masks show alike."
    )
    mask_count: int | None = _setting(
        None, Whole(1, 100_000), "Masks of rise and random-cx.", optional=True
    )
    window: int | None = _setting(
        None, Whole(1, 65_536), "Side of occlusion's square, in pixels.", optional=True
    )
    step: int | None = _setting(
        None, Whole(1, 65_536), "Pixels from one square of occlusion to the next.", optional=True
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None and each.metadata["optional"]:
                continue
            object.__setattr__(self, each.name, each.metadata["rule"].accept(each.name, value))


class SettingValues(TypedDict, total=False):
    """The settings by name, as `Explainer.explain` and its kin take them, for type checkers."""

    preset: PresetName | None
    distance_threshold: float | None
    noise_std: float
    seed: int
    estimator: EstimatorName
    debias: bool
    coverage_correction: bool
    cluster_masks: ClusterMasks
    method: MethodName
    hidden: Hidden
    team_share: float
    prior_strength: float
    prior_likeness: float
    mask_count: int | None
    window: int | None
    step: int | None


SETTING_NAMES = tuple(each.name for each in fields(Settings))


def setting_rules() -> Mapping[str, Rule]:
    """What each setting takes, by its name."""
    return {each.name: each.metadata["rule"] for each in fields(Settings)}


@dataclass(frozen=True, eq=False)
class Request:
    """A picture to explain: made by `Explainer.request`, which checks the settings."""

    image: Any
    targets: Any
    settings: Settings
