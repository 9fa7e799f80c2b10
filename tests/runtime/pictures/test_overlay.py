"""The colour map, the overlay and the files written."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.oracle import overlay as oracle
from tests.runtime.numpy_session import numpy_explainer, picture
from vitcx.runtime.pictures import overlay as drawn
from vitcx.runtime.pictures.colormap import color_table, colorize, oklab_path
from vitcx.runtime.pictures.overlay import (
    MOST_DRAWN,
    add_caption,
    drawing,
    heat_of_pixels,
    overlay,
    seen_pixels,
)


def test_the_colour_map_is_perceptually_uniform():
    path = oklab_path()
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert steps.max() / steps.min() < 1.01
    assert (np.diff(path[:, 0]) > 0).all()  # lightness rises
    table = color_table().astype(int)
    assert table.shape == (256, 3)
    assert np.abs(np.diff(table, axis=0)).max() <= 8  # no band
    np.testing.assert_array_equal(
        colorize(np.array([[-1, 0, 1, 2]], np.float32))[0, 1:3], table[[0, -1]]
    )


def test_heat_lies_where_the_model_saw_it():
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 1
    box = (20.0, 10.0, 60.0, 50.0)
    part = seen_pixels((100, 60), box)
    assert part == (20, 10, 60, 50)
    laid = np.asarray(heat_of_pixels(heat, box, part))
    # The hot cell spans x 40..50 and y 20..30; its centre is the only place at full heat.
    row, column = np.unravel_index(laid.argmax(), laid.shape)
    assert (row, column) in {(14, 24), (14, 25), (15, 24), (15, 25)}
    assert laid[15, 25] > 0.9 * 255
    assert laid[35, 5] == 0
    assert seen_pixels((100, 60), (-3.0, 9.6, 200.0, 50.4)) == (0, 10, 100, 50)
    assert seen_pixels((100, 60), (20.2, 10.6, 30.6, 10.9)) == (20, 11, 31, 11)  # none


# The heat and its opacity are rounded to 8 bits each, and so is every step between: each costs at
# most half a level of 255.
OVERLAY_LEVELS = 3


@pytest.mark.parametrize("strip", [1, 70, 1 << 18])
@pytest.mark.parametrize(
    ("size", "box", "strength"),
    [
        ((37, 23), (0.0, 0.0, 37.0, 23.0), 0.8),
        ((37, 23), (7.3, -2.7, 30.1, 25.7), 1.0),
        ((23, 41), (-5.2, 3.5, 19.5, 28.49), 0.3),
        ((1, 30), (0.0, 0.0, 1.0, 30.0), 0.5),
        ((30, 1), (2.0, -14.0, 31.0, 15.0), 0.5),
    ],
)
def test_the_overlay_is_the_slow_one(size, box, strength, strip, monkeypatch):
    monkeypatch.setattr(drawn, "_STRIP_PIXELS", strip)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    heat = rng.random((5, 6)).astype(np.float32)
    expected = oracle.overlay(pixels, heat, color_table(), box, strength)
    result = np.asarray(overlay(Image.fromarray(pixels), heat, box, strength))
    np.testing.assert_allclose(result, expected, atol=OVERLAY_LEVELS)
    assert np.abs(result - expected).mean() < 0.6  # rounding, and no shift


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are told in other units")
def test_the_overlay_of_a_large_picture_takes_little_beside_it():
    script = """
import resource
import numpy as np
from PIL import Image
from vitcx.runtime.pictures.overlay import overlay
heat = np.random.default_rng(0).random((14, 14)).astype(np.float32)
overlay(Image.new("RGB", (20, 20)), heat, (0, 0, 20, 20), 0.8)
picture = Image.new("RGB", (4000, 4000), "white")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
overlay(picture, heat, (-3.5, 40, 4010, 3000), 0.8)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    source = Path(__file__).resolve().parents[3] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    # Four bytes a pixel are the result; it was sixty.
    assert int(done.stdout) < 8 * 4000 * 4000


def test_few_overlays_are_drawn_at_once(monkeypatch):
    inside, most, lock = [0], [0], threading.Lock()
    real = drawn.heat_of_pixels

    def watched(*given):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        with lock:
            inside[0] -= 1
        return real(*given)

    monkeypatch.setattr(drawn, "heat_of_pixels", watched)

    def draw():
        with drawing(), drawing():  # a thread that holds a place takes no second
            overlay(Image.new("RGB", (8, 8)), np.ones((2, 2), np.float32), (0, 0, 8, 8), 1.0)

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == MOST_DRAWN
    with drawing():
        pass


def test_a_caption_does_not_outgrow_a_picture_of_one_row():
    thin = Image.new("RGB", (2_000_000, 1))
    assert add_caption(thin, "cat") is thin
    assert add_caption(Image.new("RGB", (12_000, 300)), "cat").height <= 300 + 2 * 160


def test_the_overlay_colours_only_what_was_seen():
    grey = Image.new("RGB", (40, 20), (100, 100, 100))
    result = np.asarray(overlay(grey, np.ones((4, 4), np.float32), (10, 0, 30, 20), 1.0))
    assert result.shape == (20, 40, 3)
    np.testing.assert_array_equal(result[10, 20], color_table()[-1])
    assert (result[:, :9] == 45).all()
    plain = np.asarray(overlay(grey, np.ones((4, 4), np.float32), (10, 0, 30, 20), 0.0))
    np.testing.assert_array_equal(plain[10, 20], (100, 100, 100))


@pytest.mark.parametrize("text", ["cat  97.2%", "a very long name, with synonyms " * 8, "été"])
def test_a_caption_covers_no_pixel(text):
    white = Image.new("RGB", (120, 80), "white")
    result = add_caption(white, text)
    assert result.width == 120
    assert result.height > 80
    assert (np.asarray(result)[:80] == 255).all()
    assert (np.asarray(result)[80:] > 128).any()


def test_a_heatmap_spans_zero_to_one_and_a_flat_one_is_zero():
    with numpy_explainer() as explainer:
        result = explainer.explain(picture((16, 16)))
    assert result.heatmap().min() == 0
    assert result.heatmap().max() == 1
    result.saliency[...] = 0.7
    result.saliency[0, 3, 3] += 1e-6  # rounding is not evidence
    assert not result.heatmap().any()


def test_the_peak_is_told_in_pixels_of_the_original():
    with numpy_explainer() as explainer:
        result = explainer.explain(Image.new("RGB", (64, 32), (9, 99, 199)), noise_std=1.0)
        assert result.box == (16, 0, 48, 32)
        result.saliency[...] = 0
        result.saliency[0, 15, 0] = 1
        assert result.peak() == (17.0, 31.0)


def test_what_is_saved(tmp_path):
    source = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    with numpy_explainer() as explainer:
        result = explainer.explain(source, targets=[1, 3])
    written = result.save(tmp_path / "deep" / "folder", "photo")
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == [
        "photo.3.png",
        "photo.json",
        "photo.npz",
        "photo.png",
    ]
    with np.load(written["arrays"], allow_pickle=False) as arrays:
        for name in ("saliency", "masks", "impacts", "coverage", "probabilities"):
            np.testing.assert_array_equal(arrays[name], getattr(result, name))
        np.testing.assert_array_equal(arrays["targets"], [1, 3])
    summary = json.loads(written["summary"].read_text())
    assert [t["index"] for t in summary["targets"]] == [1, 3]
    assert summary["masks"] == len(result.masks)
    assert summary["provenance"]["engine"] == "numpy"
    with Image.open(written["overlay"]) as saved:
        assert saved.size[0] == 50
    assert result.overlay(1).size == (50, 40)


def test_the_figure_shows_picture_masks_and_coverage(tmp_path):
    pytest.importorskip("matplotlib")
    with numpy_explainer() as explainer:
        result = explainer.explain(picture((16, 16)))
        written = result.save(tmp_path, "x", figure=True)
    with Image.open(written["figure"]) as figure:
        assert figure.width > 400
        assert len(np.unique(np.asarray(figure.convert("L")))) > 50
