"""Options that several subcommands have, and the check of the folder they write to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vitcx.runtime.engines.registry import ENGINE_NAMES
from vitcx.runtime.errors import InputError
from vitcx.runtime.method.estimators import ESTIMATOR_NAMES
from vitcx.runtime.settings import CLUSTER_MASKS

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

# The settings of `Explainer.explain` under their own names.
setting_options = _all(
    click.option("--distance-threshold", type=float, help="δ.  [default: the bundle's]"),
    click.option("--noise-std", type=float, default=0.1, show_default=True, help="σ of the noise."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise."),
    click.option(
        "--estimator", default="paper", show_default=True, type=click.Choice(ESTIMATOR_NAMES)
    ),
    click.option(
        "--cluster-masks",
        default="renormalised",
        show_default=True,
        type=click.Choice(CLUSTER_MASKS),
    ),
)


def check_out_folder(out: Path) -> None:
    """Refuse an --out that is a file, before any work."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out '{out}' is a file: give a folder")
