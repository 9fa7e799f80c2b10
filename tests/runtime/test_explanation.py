"""What an explanation shows of itself: in a notebook, as a figure, in one line."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.runtime.numpy_session import numpy_explainer
from vitcx.runtime.explanation import MOST_SHOWN
from vitcx.runtime.pictures.gallery import LEAST_SIDE, MOST_SIDE, at_shown_size, side_by_side


def explanation(size=(40, 30), targets="top3", **options):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return numpy_explainer(**options).explain(Image.fromarray(pixels), targets)


def png(shown):
    return Image.open(io.BytesIO(shown._repr_png_()))


def test_the_repr_is_one_short_line_with_classes_and_masks():
    result = explanation()
    assert repr(result) == (
        f"<Explanation: {result.title(0)}, {result.title(1)}, {result.title(2)}; "
        f"{len(result.masks)} masks, 16x16>"
    )
    many = repr(explanation(targets="top4"))
    assert ", 1 more; " in many
    assert "array" not in many


def test_a_name_that_moves_the_cursor_does_not_reach_the_terminal():
    result = explanation(targets=[0])
    object.__setattr__(result, "target_names", ("a\x1b[2Jb\nc",))
    object.__setattr__(result, "image", "photo\r.jpg")
    assert repr(result).isprintable()
    assert "photo?.jpg: a?[2Jb?c" in repr(result)


@pytest.mark.parametrize(("size", "side"), [((40, 30), LEAST_SIDE), ((1500, 900), MOST_SIDE)])
def test_a_notebook_shows_the_overlays_side_by_side_at_a_size_to_look_at(size, side):
    one, three = png(explanation(size, targets=[1])), png(explanation(size))
    assert one.width == side
    assert three.width > 3 * side
    # The first overlay is that of the first target, with its caption below it.
    assert three.height == one.height > side * size[1] / size[0]


def test_a_notebook_is_not_flooded_by_many_targets():
    result = explanation(targets=list(range(4)), classes=4)
    assert png(result).width < (MOST_SHOWN + 0.5) * LEAST_SIDE
    result = explanation(targets=list(range(9)), classes=9)
    assert png(result).width < (MOST_SHOWN + 0.5) * LEAST_SIDE


def test_the_box_goes_with_its_picture():
    picture = Image.new("RGB", (1024, 512))
    shown, box = at_shown_size(picture, (256.0, 0.0, 768.0, 512.0))
    assert shown.size == (512, 256)
    assert box == (128.0, 0.0, 384.0, 256.0)
    same = Image.new("RGB", (300, 200))
    assert at_shown_size(same, (0, 0, 300, 200))[0] is same
    assert at_shown_size(Image.new("RGB", (5000, 1)), (0, 0, 5000, 1))[0].size == (512, 1)
    assert side_by_side([same, shown]).size == (300 + 8 + 512, 256)


def test_the_plot_shows_picture_maps_and_contrast():
    pytest.importorskip("matplotlib", reason="matplotlib (extra plot) is not installed")
    result = explanation()
    titles = [axes.get_title() for axes in result.plot().axes]
    names = result.target_names
    assert titles[:4] == ["picture", result.title(0), result.title(1), result.title(2)]
    assert titles[4:] == [f"red: {names[0]}, blue: {names[1]}"]
    assert len(result.plot(contrast=None).axes) == 4
    assert len(explanation(targets=[0]).plot().axes) == 2
    assert len(explanation(targets="top7", classes=9).plot().axes) == 9


def test_the_contrast_of_the_plot_lies_where_the_model_looked_and_zero_is_its_middle():
    pytest.importorskip("matplotlib", reason="matplotlib (extra plot) is not installed")
    result = explanation((600, 300))
    axes = result.plot(contrast=(2, 0)).axes[-1]
    _grey, drawn = axes.get_images()
    np.testing.assert_array_equal(drawn.get_array(), result.contrast(2, 0))
    least, most = drawn.get_clim()
    assert least == -most < 0
    scale = 512 / 600
    left, top, right, bottom = (edge * scale for edge in result.box)
    np.testing.assert_allclose(
        drawn.get_extent(), [left - 0.5, right - 0.5, bottom - 0.5, top - 0.5], atol=1e-6
    )
    assert axes.get_xlim() == (-0.5, 511.5)


def test_figures_are_shown_by_a_notebook_and_a_dollar_is_no_formula():
    pytest.importorskip("matplotlib", reason="matplotlib (extra plot) is not installed")
    result = explanation(targets=[0, 1])
    object.__setattr__(result, "target_names", ("a $\\frac{ class$", "50 $"))
    for figure in (result.plot(), result.figure()):
        assert png(figure).width > 200


def test_without_matplotlib_the_error_names_the_extra():
    code = """
import sys; sys.modules["matplotlib"] = None
from tests.runtime.test_explanation import explanation
from vitcx import MissingExtraError
result = explanation()
result._repr_png_()
for draw in (result.plot, result.figure):
    try:
        draw()
    except MissingExtraError as error:
        assert "vitcx[plot]" in str(error), error
    else:
        raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
