import numpy as np
import pytest

from vitcx.evaluation.boxes import (
    Annotation,
    best_overlaps,
    box_mask,
    box_of_map,
    boxes_in_frame,
    centre_hit,
    localisation,
    overlap,
    pointing_hit,
    read_annotations,
)
from vitcx.runtime.errors import InputError


def test_boxes_follow_the_crop():
    """A 400x200 picture of which the model sees the middle 200x200, in 100x100 pixels."""
    seen = (100.0, 0.0, 300.0, 200.0)
    found = boxes_in_frame(
        [(100, 0, 200, 100), (0, 0, 90, 50), (250, 150, 400, 200)], seen, (100, 100)
    )
    assert found == [(0.0, 0.0, 50.0, 50.0), (75.0, 75.0, 100.0, 100.0)]
    mask = box_mask(found, (100, 100))
    assert mask.sum() == 50 * 50 + 25 * 25
    assert mask[49, 49]
    assert not mask[50, 50]


def test_pointing():
    truth = box_mask([(2, 3, 4, 5)], (8, 8))
    saliency = np.zeros((8, 8), dtype=np.float32)
    saliency[3, 2] = 1
    assert pointing_hit(saliency, truth)
    assert not pointing_hit(saliency.T, truth)
    assert not centre_hit(truth)
    assert centre_hit(box_mask([(0, 0, 8, 8)], (8, 8)))


def test_overlap_against_counting_pixels():
    rng = np.random.default_rng(0)
    for _ in range(30):
        x0, y0, x1, y1, u0, v0, u1, v1 = rng.integers(0, 6, 8) + np.tile([0, 0, 7, 7], 2)
        a, b = (x0, y0, x1, y1), (u0, v0, u1, v1)
        one, two = box_mask([a], (14, 14)), box_mask([b], (14, 14))
        assert overlap(a, b) == pytest.approx((one & two).sum() / (one | two).sum())
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0


def test_the_box_of_a_map_is_that_of_its_largest_part():
    saliency = np.zeros((10, 12), dtype=np.float32)
    saliency[2:6, 3:9] = 1.0
    saliency[8:10, 0:2] = 2.0
    assert box_of_map(saliency, 0.4) == (3, 2, 9, 6)
    assert box_of_map(saliency, 0.9) == (0, 8, 2, 10)
    overlaps = best_overlaps(saliency, [(3, 2, 9, 6)], (0.4, 0.9))
    assert overlaps == [1.0, 0.0]
    assert localisation([overlaps, [0.6, 0.2]], (0.4, 0.9)) == {"accuracy": 1.0, "threshold": 0.4}
    assert box_of_map(np.ones((4, 5), dtype=np.float32), 0.5) == (0, 0, 5, 4)


def test_annotations(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text(
        "file,class_index,x0,y0,x1,y1\na.png,3,0,1,2,3\na.png,3,4,5,6,7\nb.png,1,0,0,1,1\n"
    )
    assert read_annotations(path) == {
        "a.png": Annotation(3, ((0, 1, 2, 3), (4, 5, 6, 7))),
        "b.png": Annotation(1, ((0, 0, 1, 1),)),
    }
    path.write_text("file,class_index,name\na.png,5,x\n")
    assert read_annotations(path) == {"a.png": Annotation(5)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,b\n", "columns"),
        ("file,x0,y0,x1\na,1,2,3\n", "columns"),
        ("file,class_index\na.png,dog\n", "line 2"),
        ("file,x0,y0,x1,y1\na.png,1,2,,4\n", "line 2"),
        ("", "none"),
    ],
)
def test_bad_annotations_say_why(tmp_path, text, message):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_annotations(path)
    with pytest.raises(InputError, match="cannot read"):
        read_annotations(tmp_path / "none.csv")
