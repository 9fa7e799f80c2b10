"""What is asked for: a picture, the classes to explain, and how. Checked here, once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from vitcx.kernels.host.philox import SEED_LIMIT
from vitcx.runtime.errors import InputError
from vitcx.runtime.method.estimators import ESTIMATOR_NAMES
from vitcx.runtime.method.methods import METHOD_NAMES, refuse_idle_settings

CLUSTER_MASKS = ("renormalised", "mean", "none")


@dataclass(frozen=True)
class Settings:
    """How to explain. See `Explainer.explain` for what each does.

    Raises
    ------
    InputError
        At construction, if a value is out of range.
    """

    distance_threshold: float
    noise_std: float = 0.1
    seed: int = 0
    estimator: str = "paper"
    debias: bool = True
    coverage_correction: bool = True
    cluster_masks: str = "renormalised"
    method: str = "vit-cx"
    mask_count: int | None = None
    window: int | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        _in_range("distance_threshold", self.distance_threshold, 0, 1)
        _in_range("noise_std", self.noise_std, 0, math.inf)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"seed is {self.seed!r}: give a whole number")
        if not 0 <= self.seed < SEED_LIMIT:
            raise InputError(f"seed is {self.seed}: give one from 0 to 2^64 - 1")
        for name, value, allowed in (
            ("estimator", self.estimator, ESTIMATOR_NAMES),
            ("cluster_masks", self.cluster_masks, CLUSTER_MASKS),
            ("method", self.method, METHOD_NAMES),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}, not one of {', '.join(allowed)}")
        for name, switch in (
            ("debias", self.debias),
            ("coverage_correction", self.coverage_correction),
        ):
            if not isinstance(switch, bool):
                raise InputError(f"{name} is {switch!r}: give True or False")
        for name, count in (
            ("mask_count", self.mask_count),
            ("window", self.window),
            ("step", self.step),
        ):
            if count is not None and (
                isinstance(count, bool) or not isinstance(count, int) or count < 1
            ):
                raise InputError(f"{name} is {count!r}: give a whole number of at least 1, or None")


@dataclass(frozen=True, eq=False)
class Request:
    """A picture to explain: made by `Explainer.request`, which checks the settings."""

    image: Any
    targets: Any
    settings: Settings


def complete_settings(given: dict[str, Any], distance_threshold: float) -> Settings:
    """The settings that a caller gave by name, and the defaults of the others.

    Parameters
    ----------
    given : as for `Explainer.explain`.
    distance_threshold : the bundle's, taken if none is given.

    Raises
    ------
    InputError
        If one is unknown, out of range, or means nothing to the method.
    """
    defaults = {field.name: field.default for field in fields(Settings)}
    defaults["distance_threshold"] = None
    changed = {name for name in given if given[name] != defaults.get(name)}
    if given.get("method") in METHOD_NAMES:
        refuse_idle_settings(given["method"], changed)
    if given.get("distance_threshold") is None:
        given = {**given, "distance_threshold": distance_threshold}
    if unknown := sorted(given.keys() - {field.name for field in fields(Settings)}):
        raise InputError(f"there is no setting called {', '.join(unknown)}")
    return Settings(**given)


def _in_range(name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is {value!r}: give a number")
    if not (least <= value <= most and math.isfinite(value)):
        limit = f"from {least} to {most}" if math.isfinite(most) else f"of at least {least}"
        raise InputError(f"{name} is {value}: give a finite number {limit}")
