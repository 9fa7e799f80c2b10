"""`vitcx demo`: the embedded model explains scenes whose contents are known."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import click
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vitcx.commands.options import check_out_folder
from vitcx.commands.terminal import say
from vitcx.runtime.demo.scenes import FIRST_FRESH_SEED, make_scene
from vitcx.runtime.digests import replacing
from vitcx.runtime.engines.registry import ENGINE_NAMES
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import load
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.pictures.overlay import add_caption
from vitcx.runtime.presets import PRESET_NAMES, PresetName

_SHEET_NAME, _SOFTWARE = "demo.png", "vitcx demo"
_ZOOM = 3  # scenes are small: the sheet shows them larger
_GAP, _GROUND = 8, (24, 20, 32)


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
@click.option(
    "--preset",
    "presets",
    multiple=True,
    default=("paper", "balanced"),
    show_default=True,
    type=click.Choice(PRESET_NAMES),
    help="Settings that go together. Repeat it to compare presets.",
)
def command(out: Path, scenes: int, seed: int, engine: str, presets: tuple[PresetName, ...]) -> int:
    """Explain drawn scenes with the embedded model, and check the maps against what was drawn.

    Use it to see what vitcx does, without a model or pictures of your own. Writes each scene, its
    overlays, arrays and summary (under NAME.PRESET for all presets but the first), and demo.png:
    all of them on one sheet, a line of maps for each preset.

    \b
    Example:
      vitcx demo --out out
    """
    check_out_folder(out)
    _check_sheet(out / _SHEET_NAME)
    blocks: list[Image.Image] = []
    hits = dict.fromkeys(presets, 0)
    targets = 0
    with load("demo", engine) as explainer:
        for number in range(seed, seed + scenes):
            scene = make_scene(FIRST_FRESH_SEED + number, objects=1 + number % 2)
            picture = Image.fromarray(scene.image)
            classes = [item.class_index for item in scene.objects]
            targets += len(classes)
            name = f"scene_{number:02d}"
            _save(picture, out / f"{name}.input.png")
            lines: list[list[Image.Image]] = []
            for preset in hits:
                result = explainer.explain(picture, targets=classes, preset=preset)
                result.save(out, name if not lines else f"{name}.{preset}")
                lines.append(_line(picture, result, preset))
                for i, item in enumerate(scene.objects):
                    x, y = result.peak(i)
                    on_object = bool(item.mask[int(y), int(x)])
                    hits[preset] += on_object
                    where = "on" if on_object else "beside"
                    peak = f"peak ({x:.0f}, {y:.0f}) {where} the object"
                    say(f"{name}, {preset}: {result.title(i)}, {peak}")
            blocks.append(_block(lines))
    _save(_sheet(blocks), out / _SHEET_NAME)
    for preset, count in hits.items():
        say(f"{preset}: {count} of {targets} peaks lie on the object that was drawn")
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


def _line(picture: Image.Image, result: Explanation, preset: str) -> list[Image.Image]:
    """The scene and one captioned overlay for each target, enlarged."""
    scene = picture.resize((picture.width * _ZOOM, picture.height * _ZOOM))
    larger = dataclasses.replace(
        result, original=scene, box=(0.0, 0.0, float(scene.width), float(scene.height))
    )
    maps = [
        add_caption(larger.overlay(i), f"{preset}: {result.title(i)}")
        for i in range(len(result.targets))
    ]
    return [add_caption(scene, "picture"), *maps]


def _block(lines: list[list[Image.Image]]) -> Image.Image:
    """A line of cells for each preset; the scene stands once."""
    width = sum(cell.width + _GAP for cell in lines[0]) - _GAP
    height = sum(line[0].height + _GAP for line in lines) - _GAP
    block = Image.new("RGB", (width, height), _GROUND)
    y = 0
    for number, line in enumerate(lines):
        x = 0
        for place, cell in enumerate(line):
            if place or not number:
                block.paste(cell, (x, y))
            x += cell.width + _GAP
        y += line[0].height + _GAP
    return block


def _sheet(blocks: list[Image.Image]) -> Image.Image:
    """Scenes side by side, two blocks a line, on a dark ground."""
    pairs = [blocks[i : i + 2] for i in range(0, len(blocks), 2)]
    width = max(sum(b.width + _GAP for b in pair) for pair in pairs) + _GAP
    height = sum(max(b.height for b in pair) + _GAP for pair in pairs) + _GAP
    sheet = Image.new("RGB", (width, height), _GROUND)
    y = _GAP
    for pair in pairs:
        x = _GAP
        for block in pair:
            sheet.paste(block, (x, y))
            x += block.width + _GAP
        y += max(b.height for b in pair) + _GAP
    return sheet
