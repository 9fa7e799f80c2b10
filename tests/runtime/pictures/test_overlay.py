"""The colour map, the overlay and the files written."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.runtime.numpy_session import numpy_explainer, picture
from vitcx.runtime.pictures.colormap import color_table, colorize, oklab_path
from vitcx.runtime.pictures.overlay import add_caption, heat_on_original, overlay


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
    laid, seen = heat_on_original(heat, (100, 60), (20, 10, 60, 50))
    assert seen.sum() == 40 * 40
    assert seen[10:50, 20:60].all()
    assert (laid[~seen] == 0).all()
    # The hot cell spans x 40..50 and y 20..30; its centre is the only place at full heat.
    row, column = np.unravel_index(laid.argmax(), laid.shape)
    assert (row, column) in {(24, 44), (24, 45), (25, 44), (25, 45)}
    assert laid[25, 45] > 0.9
    assert laid[45, 25] == 0


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
