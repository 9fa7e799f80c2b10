"""README's photographs with their maps: python -m tools.readme_pictures --bundle DIR."""

from __future__ import annotations

from pathlib import Path

import click
import skimage.data
from PIL import Image

import vitcx
from vitcx.runtime.pictures.gallery import side_by_side
from vitcx.runtime.pictures.overlay import add_caption
from vitcx.runtime.presets import PresetName

# All in the public domain.
PHOTOGRAPHS = ("chelsea", "coffee", "rocket")
HEIGHT = 224
PRESETS: tuple[PresetName, ...] = ("paper", "balanced")


@click.command()
@click.option("--bundle", required=True, help="A bundle's folder.")
@click.option("--out", default=Path("docs/images/photographs.jpg"), type=click.Path(path_type=Path))
def main(bundle: str, out: Path) -> None:
    """Draw each photograph, and its overlays by two presets."""
    rows = []
    with vitcx.load(bundle) as explainer:
        for name in PHOTOGRAPHS:
            picture = Image.fromarray(getattr(skimage.data, name)())
            picture = picture.resize((picture.width * HEIGHT // picture.height, HEIGHT))
            cells = [add_caption(picture, "the photograph")]
            for preset in PRESETS:
                result = explainer.explain(picture, preset=preset)
                cells.append(add_caption(result.overlay(0), f"{preset}: {result.title(0)}"))
            rows.append(side_by_side(cells))
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(out, quality=85, optimize=True)


if __name__ == "__main__":
    main()
