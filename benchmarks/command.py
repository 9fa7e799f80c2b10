"""What the command lines of the benchmarks share.

Every one is ``python -m benchmarks.NAME --bundle ... --out ...``; the last line of its output is
JSON. Bad usage and bad input are one line on stderr and exit code 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vitcx.evaluation.speed import describe_run
from vitcx.runtime.digests import replacing
from vitcx.runtime.errors import VitcxError

Function = TypeVar("Function", bound=Callable[..., Any])


class _Refused(click.ClickException):
    exit_code = 2


class Benchmark(click.Command):
    """A command whose errors on purpose are a line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VitcxError as error:
            raise _Refused(str(error)) from error


def bundle_option(function: Function) -> Function:
    return click.option(
        "--bundle", default="demo", show_default=True, help="Folder, or 'demo', the embedded model."
    )(function)


def images_argument(function: Function) -> Function:
    return click.argument("images", nargs=-1, type=click.Path(path_type=Path))(function)


def out_option(what: str) -> Callable[[Function], Function]:
    """``--out``, for `what` is written there."""
    return click.option("--out", type=click.Path(path_type=Path), help=what)


def finish(report: dict[str, Any], path: Path | None, packages: tuple[str, ...] = ()) -> None:
    """Print the report, with what the run was, as the last line; write it to `path` if given."""
    report = {**describe_run(("vitcx", "numpy", *packages)), **report}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            text = json.dumps(report, indent=1, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    click.echo(json.dumps(report, ensure_ascii=False))
