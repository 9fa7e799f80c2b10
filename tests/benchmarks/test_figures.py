"""The figures of the page of proof, drawn from maps and records made up here."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

from benchmarks import figures


def test_a_map_is_shown_between_its_extremes_whatever_single_pixels_do():
    saliency = np.linspace(0, 1, 1000, dtype=np.float32).reshape(20, 50)
    saliency[0, 0] = 100
    found = figures.shown(saliency)
    assert found.min() == 0
    assert found.max() == 1
    # Half of the range stays half of the range: the outlier is clipped.
    assert found.reshape(-1)[500] == pytest.approx(0.5, abs=0.01)


def test_grid_and_curves_become_pictures(tmp_path):
    picture = Image.new("RGB", (16, 16), (200, 10, 10))
    saliency = np.eye(16, dtype=np.float32)
    figures.draw_grid({"red": picture}, {"red": {"a": saliency, "b": saliency}}, tmp_path / "g.jpg")
    curve = {"deletion": 0.1, "insertion": 0.6, "difference": 0.5}
    curve |= {"deletion_curve": [1.0, 0.1, 0.0], "insertion_curve": [0.0, 0.7, 1.0]}
    records = [
        {"method": name, "image": image, **curve}
        for name, image in (("ViT-CX", "x"), ("other", "x"), ("other", "y"))
    ]
    figures.draw_curves(records, ["ViT-CX", "other"], tmp_path / "c.jpg")
    for name in ("g.jpg", "c.jpg"):
        with Image.open(tmp_path / name) as drawn:
            assert drawn.format == "JPEG"
            assert np.asarray(drawn).std() > 0
