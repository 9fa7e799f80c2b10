"""Options that several subcommands have, and the check of the folder they write to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from vitcx.runtime.engines.registry import ENGINE_NAMES
from vitcx.runtime.errors import InputError
from vitcx.runtime.presets import PRESET_NAMES, PRESETS
from vitcx.runtime.settings import Choice, Rule, Settings, Switch, Whole

_F = TypeVar("_F", bound=Callable[..., Any])


def _all(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """The options as one decorator, listed by `--help` in the order given."""

    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class _SectionOption(click.Option):
    """An option that `SectionedCommand` lists under a heading of its own."""

    def __init__(self, *arguments: Any, section: str, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help lists settings and engine options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = (
                parameter.get_help_record(ctx) if parameter.param_type_name == "option" else None
            )
            if record is not None:
                section = getattr(parameter, "section", "Options")
                sections.setdefault(section, []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


_ENGINE_SECTION = "Engine"
_SETTING_SECTION = "Single settings, each of which overrides the preset's"

bundle_option = click.option(
    "--bundle",
    default="demo",
    show_default=True,
    help="A bundle's folder, or 'demo' for the embedded model.",
)
imprecise_option = click.option(
    "--allow-imprecise",
    is_flag=True,
    cls=_SectionOption,
    section=_ENGINE_SECTION,
    help="Load a reduced precision even if its maps are too far from fp32's.",
)
device_option = click.option(
    "--device",
    type=click.IntRange(min=0),
    metavar="N",
    cls=_SectionOption,
    section=_ENGINE_SECTION,
    help="Index of the GPU, for an engine that runs on one.  [default: the first]",
)
# What `vitcx.load` takes beside the bundle.
engine_options = _all(
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        type=click.Choice(ENGINE_NAMES),
        metavar="NAME",
        cls=_SectionOption,
        section=_ENGINE_SECTION,
        help=f"One of {', '.join(ENGINE_NAMES)}. 'auto' takes the first that can run here.",
    ),
    click.option(
        "--threads",
        type=int,
        cls=_SectionOption,
        section=_ENGINE_SECTION,
        help="CPU threads of a forward pass.  [default: every core]",
    ),
    click.option(
        "--batch-size",
        type=int,
        cls=_SectionOption,
        section=_ENGINE_SECTION,
        help="Rows of a mask batch.  [default: the engine's]",
    ),
    device_option,
    imprecise_option,
)

preset_option = click.option(
    "--preset",
    type=click.Choice(PRESET_NAMES),
    help="Settings that go together. "
    + "; ".join(f"{preset.name} ({preset.summary})" for preset in PRESETS.values())
    + ".  [default: paper]",
)


def _setting_option(name: str, rule: Rule, default: Any, text: str) -> Callable[[_F], _F]:
    flag = f"--{name.replace('_', '-')}"
    kind: Any = float
    if isinstance(rule, Switch):
        flag, kind = f"{flag}/--no-{name.replace('_', '-')}", None
        default = {True: "on", False: "off"}[default]
    elif isinstance(rule, Choice):
        kind = click.Choice(rule.words)
        text = f"{text} One of {', '.join(rule.words)}."
    elif isinstance(rule, Whole):
        kind = int
    shown = "" if default is None else f"  [default: {default}]"
    return click.option(
        flag,
        name,
        default=None,
        type=kind,
        metavar="NAME" if isinstance(rule, Choice) else None,
        cls=_SectionOption,
        section=_SETTING_SECTION,
        help=text + shown,
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
