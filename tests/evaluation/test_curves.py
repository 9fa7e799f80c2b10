import numpy as np
import pytest

from vitcx.evaluation.curves import (
    Question,
    area,
    empty_canvas,
    pixel_ranks,
    score_curves,
    taken_pixels,
)
from vitcx.evaluation.imputation import impute
from vitcx.runtime.errors import InputError


def slow_curves(session, pixels, saliency, target, steps, canvas):
    """Petsiuk's two games, a pixel at a time."""
    side = saliency.shape[0]
    places = [(-saliency[y, x], y, x) for y in range(side) for x in range(saliency.shape[1])]
    places.sort()
    deletion, insertion = [], []
    for step in range(steps + 1):
        count = round(step * len(places) / steps)
        gone, come = pixels.copy(), canvas.copy()
        for _, y, x in places[:count]:
            gone[:, y, x] = canvas[:, y, x]
            come[:, y, x] = pixels[:, y, x]
        deletion.append(session.predict(gone[None])[0, target])
        insertion.append(session.predict(come[None])[0, target])
    return deletion, insertion


def test_frames_on_the_road_canvas_are_imputed_from_what_is_shown(session, picture):
    saliency = np.random.default_rng(0).random((28, 28)).astype(np.float32)
    (curves,) = score_curves(session, [Question(picture, saliency, 1)], steps=4, canvas="road")
    ranks = pixel_ranks(saliency)
    frames = [impute(picture, ranks < count) for count in (0, 196, 392, 588, 784)]
    frames += [impute(picture, ranks >= count) for count in (0, 196, 392, 588, 784)]
    expected = session.predict(np.stack(frames))[:, 1]
    np.testing.assert_allclose(curves.deletion, expected[:5], atol=1e-6)
    np.testing.assert_allclose(curves.insertion, expected[5:], atol=1e-6)


@pytest.mark.parametrize("canvas", ["zero", "mean", "blur"])
def test_curves_are_those_of_the_slow_games(session, picture, canvas):
    saliency = np.random.default_rng(0).random((28, 28)).astype(np.float32)
    saliency[:5] = 0.5  # ties
    (curves,) = score_curves(session, [Question(picture, saliency, 1)], steps=9, canvas=canvas)
    expected = slow_curves(
        session, picture, saliency, 1, 9, np.array(empty_canvas(picture, canvas))
    )
    np.testing.assert_allclose(curves.deletion, expected[0], atol=1e-6)
    np.testing.assert_allclose(curves.insertion, expected[1], atol=1e-6)


def test_a_hand_worked_case():
    """One pixel holds all the evidence: it goes first, or comes first."""
    assert area(np.array([1, 0, 0, 0, 0], dtype=np.float32)) == pytest.approx(1 / 8)
    assert area(np.array([0, 1, 1, 1, 1], dtype=np.float32)) == pytest.approx(7 / 8)
    ranks = pixel_ranks(np.array([[0.2, 0.9], [0.2, 0.5]], dtype=np.float32))
    assert ranks.tolist() == [[2, 0], [3, 1]]
    assert taken_pixels(10, 4).tolist() == [0, 2, 5, 8, 10]


def test_frames_of_many_pictures_fill_the_batches(session, picture):
    rng = np.random.default_rng(1)
    maps = [rng.random((28, 28)).astype(np.float32) for _ in range(5)]
    questions = [Question(picture + i, m, i % 3) for i, m in enumerate(maps)]
    together = list(score_curves(session, iter(questions), steps=7))
    assert session.sizes == [16, 16, 16, 16, 6]  # 5 x 14 rows
    for question, curves in zip(questions, together, strict=True):
        (alone,) = score_curves(session, [question], steps=7)
        np.testing.assert_allclose(alone.deletion, curves.deletion, atol=1e-6)
        np.testing.assert_allclose(alone.insertion, curves.insertion, atol=1e-6)
    assert list(score_curves(session, [])) == []


def test_the_true_gradient_beats_its_opposite(session, picture):
    """For a linear model the contribution of each pixel is known."""
    gain = (session.weights[1] - session.weights.mean(axis=0)).reshape(3, 28, 28)
    contribution = (gain * picture).sum(axis=0)
    best, worst = score_curves(
        session, [Question(picture, s, 1) for s in (contribution, -contribution)], steps=14
    )
    assert best.difference > 0.2
    assert worst.difference == pytest.approx(-best.difference, abs=1e-5)


def test_bad_maps_and_settings_are_refused(session, picture):
    good = np.zeros((28, 28), dtype=np.float32)
    with pytest.raises(InputError, match="NaN"):
        list(score_curves(session, [Question(picture, good * np.nan, 0)]))
    with pytest.raises(InputError, match="size"):
        list(score_curves(session, [Question(picture, good[1:], 0)]))
    with pytest.raises(InputError, match="steps"):
        list(score_curves(session, [], steps=0))
    with pytest.raises(InputError, match="canvas"):
        list(score_curves(session, [], canvas="pink"))
