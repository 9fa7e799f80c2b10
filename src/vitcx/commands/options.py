"""Options that several subcommands have, and the check of the folder they write to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from vitcx.runtime.engines.registry import ENGINE_NAMES
from vitcx.runtime.errors import InputError
from vitcx.runtime.presets import PRESET_NAMES
from vitcx.runtime.settings import Choice, Rule, Settings, Switch, Whole

_F = TypeVar("_F", bound=Callable[..., Any])


def _all(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """The options as one decorator, listed by `--help` in the order given."""

    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


imprecise_option = click.option(
    "--allow-imprecise", is_flag=True, help="Load a precision that is too far from fp32, too."
)
# What `vitcx.load` takes beside the bundle.
engine_options = _all(
    click.option("--engine", default="auto", show_default=True, type=click.Choice(ENGINE_NAMES)),
    click.option(
        "--threads", type=int, help="CPU threads of a forward pass.  [default: every core]"
    ),
    click.option("--batch-size", type=int, help="Rows of a mask batch.  [default: the engine's]"),
    imprecise_option,
)

preset_option = click.option(
    "--preset",
    type=click.Choice(PRESET_NAMES),
    help="Settings that go together; single settings override them.  [default: paper]",
)


def _setting_option(name: str, rule: Rule, default: Any, text: str) -> Callable[[_F], _F]:
    flag = f"--{name.replace('_', '-')}"
    shown: dict[str, Any] = {"show_default": str(default)} if default is not None else {}
    if isinstance(rule, Switch):
        off = f"--no-{name.replace('_', '-')}"
        return click.option(f"{flag}/{off}", name, default=None, help=text, **shown)
    kind: Any = click.Choice(rule.words) if isinstance(rule, Choice) else float
    return click.option(
        flag, name, type=int if isinstance(rule, Whole) else kind, help=text, **shown
    )


# The settings of `Explainer.explain` under their own names; `given_settings` takes those given.
setting_options = _all(
    preset_option,
    *(
        _setting_option(each.name, each.metadata["rule"], each.default, each.metadata["help"])
        for each in fields(Settings)
    ),
)


def given_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The preset and settings that the user gave, out of what `setting_options` adds."""
    return {name: value for name, value in options.items() if value is not None}


def check_out_folder(out: Path) -> None:
    """Refuse an --out that is a file, before any work."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out '{out}' is a file: give a folder")
