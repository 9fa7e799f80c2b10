"""A map that tells next to nothing says so."""

import numpy as np
import pytest

import vitcx
from vitcx.runtime.remarks import scores_alike

PICTURE = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)


@pytest.mark.parametrize(
    ("impacts", "alike"),
    [
        ([1.0, 0.9995, 1.0], True),  # a model that is sure whatever is dimmed
        ([0.0, 0.0, 0.0], True),
        ([-0.5, -0.5001], True),
        ([1.0, 0.98], False),
        ([0.001, 0.002], False),  # small, and still apart
        ([0.7], False),  # a single mask has nothing to be compared with
        ([], False),
    ],
)
def test_alike_is_meant_relative_to_the_impacts(impacts: list[float], alike: bool) -> None:
    assert scores_alike(np.array(impacts, np.float32)) is alike


def test_an_explanation_says_that_its_masks_score_alike() -> None:
    with vitcx.load("demo") as explainer:
        found = explainer.explain(PICTURE, noise_std=0.0)
        assert found.remarks == ()
        found.impacts[:] = np.float32(0.99) + found.impacts / 1000
    (remark,) = found.remarks
    name = found.target_names[0]
    assert remark.startswith(f"all {len(found.masks)} masks score alike for {name} (")
    assert remark.endswith("the map says next to nothing; try the preset 'balanced'")
    assert found.summary()["remarks"] == [remark]


def test_the_way_out_is_not_named_where_it_was_taken() -> None:
    with vitcx.load("demo") as explainer:
        found = explainer.explain(PICTURE, preset="balanced")
        found.impacts[:] = 1
    assert found.remarks[0].endswith("says next to nothing")
