"""Make the embedded bundle: ``python -m tools.demo_model.make_bundle --out FOLDER``.

The model goes through `export_model` like anybody's, with fresh scenes for the comparison with
torch. Its weights are those of training, or of the bundle that is embedded now.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image
from torch import nn

import vitcx.runtime.demo
from benchmarks.models import embedded_module
from tools.demo_model import model as demo_model
from vitcx.export import export_model
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.demo.scenes import CLASS_NAMES, FIRST_FRESH_SEED, make_scene
from vitcx.runtime.manifest import MODEL_NAME

DEMO_FOLDER = Path(vitcx.runtime.demo.__file__).parent / "bundle"


def write_demo_bundle(model: nn.Module, out: Path) -> Bundle:
    """Export the trained model to a bundle, replacing the one at `out`."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = []
        for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 16):
            pictures.append(Path(folder) / f"{seed}.png")
            Image.fromarray(make_scene(seed).image).save(pictures[-1])
        return export_model(
            model,
            out,
            class_names=CLASS_NAMES,
            check_images=pictures,
            force=True,
            report=print,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--weights", type=Path, help="demo.safetensors of training; default: the embedded bundle's"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    arguments = parser.parse_args()
    if arguments.weights is not None:
        model = demo_model.load(arguments.weights)
    else:
        model = embedded_module(DEMO_FOLDER / MODEL_NAME)
    write_demo_bundle(model, arguments.out)


if __name__ == "__main__":
    main()
