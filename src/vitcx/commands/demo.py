"""`vitcx demo`: the embedded model explains scenes whose contents are known."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vitcx.commands.options import check_out_folder, given_settings, preset_option
from vitcx.commands.terminal import say
from vitcx.runtime.demo.scenes import FIRST_FRESH_SEED, make_scene
from vitcx.runtime.digests import replacing
from vitcx.runtime.engines.registry import ENGINE_NAMES
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import load
from vitcx.runtime.explanation import Explanation

_SHEET_NAME, _SOFTWARE = "demo.png", "vitcx demo"
_ZOOM = 3  # scenes are small: the sheet shows them larger


@click.command("demo")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option(
    "--scenes",
    default=6,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="How many scenes to draw.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Number of the first scene.",
)
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(ENGINE_NAMES),
    metavar="NAME",
    help=f"One of {', '.join(ENGINE_NAMES)}.",
)
@preset_option
def command(out: Path, scenes: int, seed: int, engine: str, preset: str | None) -> int:
    """Explain drawn scenes with the embedded model, and check the maps against what was drawn.

    Take it to see what vitcx does, without a model or pictures of your own. Writes each scene, its
    overlays, arrays and summary, and demo.png: all of them on one sheet.

    \b
    Example:
      vitcx demo --out out
    """
    check_out_folder(out)
    _check_sheet(out / _SHEET_NAME)
    chosen: Any = given_settings({"preset": preset})
    rows: list[list[Image.Image]] = []
    hits = targets = 0
    with load("demo", engine) as explainer:
        for number in range(seed, seed + scenes):
            scene = make_scene(FIRST_FRESH_SEED + number, objects=1 + number % 2)
            picture = Image.fromarray(scene.image)
            classes = [item.class_index for item in scene.objects]
            result = explainer.explain(picture, targets=classes, **chosen)
            name = f"scene_{number:02d}"
            result.save(out, name)
            _save(picture, out / f"{name}.input.png")
            rows.append(_row(picture, result))
            for i, item in enumerate(scene.objects):
                x, y = result.peak(i)
                on_object = bool(item.mask[int(y), int(x)])
                hits += on_object
                targets += 1
                where = "on" if on_object else "beside"
                say(f"{name}: {result.title(i)}, peak ({x:.0f}, {y:.0f}) {where} the object")
    _save(_sheet(rows), out / _SHEET_NAME)
    say(f"{hits} of {targets} peaks lie on the object that was drawn")
    say(f"result: {(out / _SHEET_NAME).resolve()}")
    return 0


def _check_sheet(path: Path) -> None:
    """Refuse to replace a picture that is not a sheet of an earlier run."""
    if not os.path.lexists(path):
        return
    try:
        with Image.open(path, formats=["PNG"]) as image:
            ours = image.info.get("Software") == _SOFTWARE
    except (OSError, ValueError, SyntaxError):
        ours = False
    if not ours:
        raise InputError(
            f"'{path}' is there already and is not from 'vitcx demo': give another --out"
        )


def _save(picture: Image.Image, path: Path) -> None:
    """Write a PNG that says what made it."""
    about = PngInfo()
    about.add_text("Software", _SOFTWARE)
    with replacing(path) as temporary:
        picture.save(temporary, pnginfo=about)


def _row(picture: Image.Image, result: Explanation) -> list[Image.Image]:
    """The scene and one captioned overlay for each target, enlarged."""
    cells = [picture.resize((picture.width * _ZOOM, picture.height * _ZOOM))]
    larger = dataclasses.replace(
        result, original=cells[0], box=(0.0, 0.0, float(cells[0].width), float(cells[0].height))
    )
    return [*cells, *(larger.overlay(i, caption=True) for i in range(len(result.targets)))]


def _sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Scenes side by side, two blocks a line, on a dark ground."""
    gap = 8
    blocks = [_block(cells, gap) for cells in rows]
    pairs = [blocks[i : i + 2] for i in range(0, len(blocks), 2)]
    width = max(sum(b.width + gap for b in pair) for pair in pairs) + gap
    height = sum(max(b.height for b in pair) + gap for pair in pairs) + gap
    sheet = Image.new("RGB", (width, height), (24, 20, 32))
    y = gap
    for pair in pairs:
        x = gap
        for block in pair:
            sheet.paste(block, (x, y))
            x += block.width + gap
        y += max(b.height for b in pair) + gap
    return sheet


def _block(cells: list[Image.Image], gap: int) -> Image.Image:
    width = sum(cell.width for cell in cells) + gap * (len(cells) - 1)
    block = Image.new("RGB", (width, max(cell.height for cell in cells)), (24, 20, 32))
    for cell, x in zip(cells, np.cumsum([0, *(c.width + gap for c in cells[:-1])]), strict=True):
        block.paste(cell, (int(x), 0))
    return block
