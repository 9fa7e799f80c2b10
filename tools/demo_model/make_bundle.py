"""Make the embedded bundle: ``python -m tools.demo_model.make_bundle --weights F --out FOLDER``.

The model goes through `export_model` like anybody's, with fresh scenes for the comparison with
torch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from vitcx.export import export_model
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.demo.scenes import CLASS_NAMES, FIRST_FRESH_SEED, make_scene


def write_demo_bundle(weights: Path, out: Path) -> Bundle:
    """Export trained weights (safetensors) to a bundle, replacing the one at `out`."""
    from tools.demo_model import model as demo_model

    with tempfile.TemporaryDirectory() as folder:
        pictures = []
        for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 16):
            pictures.append(Path(folder) / f"{seed}.png")
            Image.fromarray(make_scene(seed).image).save(pictures[-1])
        return export_model(
            demo_model.load(weights),
            out,
            class_names=CLASS_NAMES,
            check_images=pictures,
            force=True,
            report=print,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="demo.safetensors of training")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    arguments = parser.parse_args()
    write_demo_bundle(arguments.weights, arguments.out)


if __name__ == "__main__":
    main()
