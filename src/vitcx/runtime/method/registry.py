"""The methods by name, and the check that the settings given mean something to the one chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitcx.runtime.errors import InputError
from vitcx.runtime.method.estimators.registry import ESTIMATORS
from vitcx.runtime.method.method import Method
from vitcx.runtime.method.occlusion import OCCLUSION
from vitcx.runtime.method.random_cx import RANDOM_CX
from vitcx.runtime.method.rise import RISE
from vitcx.runtime.method.score_cam import SCORE_CAM
from vitcx.runtime.method.vit_cx import VIT_CX
from vitcx.runtime.presets import preset_settings
from vitcx.runtime.settings import SETTING_NAMES, Settings

METHODS: Mapping[str, Method] = {
    method.name: method for method in (VIT_CX, SCORE_CAM, RISE, OCCLUSION, RANDOM_CX)
}


def complete_settings(given: Mapping[str, Any], distance_threshold: float) -> Settings:
    """The settings that a caller gave by name, over those of a preset, over the defaults.

    Parameters
    ----------
    given : as for `Explainer.explain`; `preset` among them.
    distance_threshold : the bundle's, taken if none is given.

    Raises
    ------
    InputError
        If one is unknown, out of range, or means nothing to the method or its estimator.
    """
    own = {name: value for name, value in given.items() if name != "preset"}
    if unknown := sorted(own.keys() - set(SETTING_NAMES)):
        raise InputError(
            f"there is no setting called {', '.join(unknown)}: the settings are "
            f"{', '.join(SETTING_NAMES)}"
        )
    chosen = Settings(**{**preset_settings(given.get("preset")), **own})
    _refuse_idle(chosen, own)
    if chosen.distance_threshold is None:
        chosen = Settings(**{**_values(chosen), "distance_threshold": distance_threshold})
    return chosen


def _values(settings: Settings) -> dict[str, Any]:
    return {each.name: getattr(settings, each.name) for each in fields(settings)}


def _refuse_idle(settings: Settings, own: Mapping[str, Any]) -> None:
    """Refuse a setting that the caller changed and that nothing would look at."""
    defaults = Settings()
    method = METHODS[settings.method]
    known = set(method.uses) | {"method"}
    if "estimator" in method.uses:
        known |= ESTIMATORS[settings.estimator].uses
    for name in sorted(own):
        if name in known or getattr(settings, name) == getattr(defaults, name):
            continue
        users = [m.name for m in METHODS.values() if name in m.uses]
        if users and method.name not in users:
            raise InputError(
                f"{name} has no meaning for the method {method.name!r}: it goes with "
                f"{' and '.join(users)}; leave it out"
            )
        if "estimator" not in method.uses:
            raise InputError(f"{name} has no meaning for the method {method.name!r}; leave it out")
        estimators = [e.name for e in ESTIMATORS.values() if name in e.uses]
        raise InputError(
            f"{name} has no meaning for the estimator {settings.estimator!r}: it goes with "
            f"{' and '.join(estimators)}; leave it out"
        )
    if settings.hidden == "tokens" and own.get("noise_std"):
        raise InputError(
            "noise_std has no meaning with hidden='tokens': tokens are left out, and no pixel is "
            "painted over; leave it out"
        )
