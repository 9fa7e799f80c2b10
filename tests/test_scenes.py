"""The scene maker: what a scene says about itself is true of its pixels."""

from __future__ import annotations

import numpy as np
import pytest

from vitcx.runtime.demo.distractors import distractor
from vitcx.runtime.demo.scenes import CLASS_NAMES, FIRST_FRESH_SEED, SIZE, Scene, make_scene
from vitcx.runtime.demo.shapes import CLASSES


def _scenes(objects: int, count: int = 60) -> list[Scene]:
    return [make_scene(FIRST_FRESH_SEED + i, objects=objects) for i in range(count)]


def test_a_seed_gives_the_same_scene_every_time() -> None:
    first, second = make_scene(7), make_scene(7)
    np.testing.assert_array_equal(first.image, second.image)
    assert [o.class_index for o in first.objects] == [o.class_index for o in second.objects]
    for a, b in zip(first.objects, second.objects, strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)


def test_two_seeds_give_two_scenes() -> None:
    assert not np.array_equal(make_scene(7).image, make_scene(8).image)


@pytest.mark.parametrize("objects", [0, 1, 2])
def test_a_scene_has_as_many_objects_as_asked_for(objects: int) -> None:
    for scene in _scenes(objects, count=10):
        assert len(scene.objects) == objects
        assert scene.image.shape == (SIZE, SIZE, 3)
        assert scene.image.dtype == np.uint8


def test_the_seed_decides_between_one_and_two_objects() -> None:
    counts = [len(make_scene(seed).objects) for seed in range(150)]
    assert set(counts) == {1, 2}
    assert 75 < counts.count(1) < 125


def test_the_box_is_the_smallest_around_the_mask() -> None:
    for scene in _scenes(1) + _scenes(2):
        for item in scene.objects:
            x0, y0, x1, y1 = item.box
            inside = np.zeros((SIZE, SIZE), dtype=bool)
            inside[y0:y1, x0:x1] = True
            assert not (item.mask & ~inside).any()
            for edge in (item.mask[y0], item.mask[y1 - 1], item.mask[:, x0], item.mask[:, x1 - 1]):
                assert edge.any()


def test_two_objects_differ_in_class_and_share_no_pixel() -> None:
    for scene in _scenes(2):
        first, second = scene.objects
        assert first.class_index != second.class_index
        assert not (first.mask & second.mask).any()


def test_every_object_is_large_enough_to_see_and_never_fills_the_picture() -> None:
    for scene in _scenes(1) + _scenes(2):
        for item in scene.objects:
            assert item.mask.dtype == np.bool_
            assert 80 <= item.mask.sum() <= 0.25 * SIZE * SIZE


def test_the_mask_lies_where_the_object_was_drawn() -> None:
    """Up to where the object is drawn, a scene with it and one without take the same course."""
    for seed in range(20):
        clutter, scene = make_scene(seed, objects=0), make_scene(seed, objects=1)
        mask = scene.objects[0].mask
        difference = np.abs(scene.image.astype(float) - clutter.image).sum(axis=2)
        # Exposure and grain differ between the two, so compare with what they do elsewhere.
        assert np.median(difference[mask]) > np.median(difference[~mask])


def test_all_classes_appear_and_names_match_indices() -> None:
    found = {o.class_index for scene in _scenes(2, count=120) for o in scene.objects}
    assert found == set(range(len(CLASS_NAMES)))
    for scene in _scenes(2):
        for item in scene.objects:
            assert CLASS_NAMES[item.class_index] == item.class_name


def test_the_centre_of_the_picture_is_a_poor_guess() -> None:
    """Measured on 200 scenes: the centre is on the object in 33 of them."""
    middle = SIZE // 2
    hits = sum(s.objects[0].mask[middle, middle] for s in _scenes(1, count=200))
    assert hits < 0.25 * 200


def test_colour_is_no_cue() -> None:
    """The mean colours of any two classes are closer than those of two objects of one class."""
    by_class: list[list[np.ndarray]] = [[] for _ in CLASS_NAMES]
    for scene in _scenes(1, count=360):
        item = scene.objects[0]
        by_class[item.class_index].append(scene.image[item.mask].mean(axis=0))
    within = np.mean([np.std(colours, axis=0).mean() for colours in by_class])
    between = np.std([np.mean(colours, axis=0) for colours in by_class], axis=0).mean()
    assert between < within


def test_no_two_classes_have_the_same_outline() -> None:
    """Silhouettes seen through the distance of every pixel from the centre: no two agree."""
    rng = np.random.default_rng(0)
    profiles = []
    for make in CLASSES.values():
        points = np.concatenate([part.points for part in make(rng) if part.tone != "hole"])
        profiles.append(np.histogram(np.hypot(*points.T), bins=8, range=(0, 1.2), density=True)[0])
    for i, first in enumerate(profiles):
        for second in profiles[i + 1 :]:
            assert np.abs(first - second).sum() > 0.3


def test_shapes_stay_in_the_unit_frame() -> None:
    rng = np.random.default_rng(1)
    for make in (*CLASSES.values(), distractor):
        for _ in range(20):
            for part in make(rng):
                assert part.points.ndim == 2
                assert np.isfinite(part.points).all()
                assert np.hypot(*part.points.T).max() < 1.35


@pytest.mark.parametrize("objects", [-1, 3])
def test_other_numbers_of_objects_are_refused(objects: int) -> None:
    with pytest.raises(ValueError, match=f"objects={objects}"):
        make_scene(0, objects=objects)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed"):
        make_scene(-1)
