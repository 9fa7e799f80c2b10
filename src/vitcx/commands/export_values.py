"""What the options of `vitcx export` mean: sizes, numbers, crops and layers, from their words."""

from __future__ import annotations

import re

import click

from vitcx.export.foreign.importing import is_onnx_file
from vitcx.runtime.manifest import LAYERS


def parse_size(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """H or HxW as (H, W)."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", value)
    if match is None:
        raise click.BadParameter(f"'{value}': expected a side or HxW, such as 384 or 224x320")
    return int(match[1]), int(match[2] or match[1])


def parse_numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Numbers with commas between them."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"'{value}': expected a number, or one for each channel, such as 0.5,0.5,0.5"
        ) from None


def parse_crop(ctx: click.Context, param: click.Parameter, value: str | None) -> float | str | None:
    """A share, or squash."""
    if value is None or value == "squash":
        return value
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"'{value}': expected a share such as 0.9, or squash") from None


def parse_layer(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """One of the three, or a node's name for an ONNX file."""
    if value is None or value in LAYERS or is_onnx_file(str(ctx.params.get("model", ""))):
        return value
    raise click.BadParameter(f"'{value}' is not one of {', '.join(LAYERS)}")
