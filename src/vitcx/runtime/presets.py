"""Presets: settings that go together, under a name. Single settings override a preset's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vitcx.runtime.errors import InputError

PresetName = Literal["paper", "quick", "balanced", "best"]


@dataclass(frozen=True)
class Preset:
    """Settings that go together.

    Attributes
    ----------
    name : as the user gives it.
    summary : when to take it, in one line.
    settings : by name; those that are not here keep their defaults.
    """

    name: PresetName
    summary: str
    settings: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("paper", "eq. 2 of the paper, as its authors' code computes it", {}),
        Preset(
            "quick",
            "the fewest passes: the model sees the half of the patches that a mask keeps",
            {"estimator": "teams", "noise_std": 0.0},
        ),
        Preset(
            "balanced",
            "recommended: the model sees a mask's half of the patches, then the other half",
            {"estimator": "teams-difference", "noise_std": 0.0},
        ),
        Preset(
            "best",
            "the most faithful: as balanced, with more masks and one fit over all of them",
            {"estimator": "teams-fit", "distance_threshold": 0.05, "noise_std": 0.0},
        ),
    )
}
PRESET_NAMES = get_args(PresetName)
# What settings are without a preset.
DEFAULT_PRESET: PresetName = "paper"


def preset_settings(name: Any) -> dict[str, Any]:
    """The settings of a preset; none for None.

    Raises
    ------
    InputError
        If there is no preset of that name.
    """
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset is {name!r}, not one of {', '.join(PRESET_NAMES)}")
    return dict(PRESETS[name].settings)
