"""Each metric against its paper's definition, slowly."""

import numpy as np
import pytest

from vitcx.evaluation.curves import Question, empty_canvas
from vitcx.evaluation.metrics import (
    METRICS,
    class_correlation,
    figures_of,
    mufidelity,
    saco,
    seed_correlation,
    sparseness,
)


@pytest.fixture
def saliency():
    return np.random.default_rng(0).random((28, 28)).astype(np.float32)


def slow_saco(session, question, groups):
    """Algorithm 1 of the paper, a pixel at a time; sums of salience, of groups of equal size."""
    places = [(-question.saliency[y, x], y, x) for y in range(28) for x in range(28)]
    places.sort()
    mean = question.pixels.mean(axis=(1, 2))
    before = session.predict(question.pixels[None])[0, question.target]
    size = len(places) // groups
    salience, fall = [], []
    for group in range(groups):
        hidden = question.pixels.copy()
        for _, y, x in places[group * size : (group + 1) * size]:
            hidden[:, y, x] = mean
        salience.append(sum(-v for v, _, _ in places[group * size : (group + 1) * size]))
        fall.append(before - session.predict(hidden[None])[0, question.target])
    coefficient = total = 0.0
    for i in range(groups - 1):
        for j in range(i + 1, groups):
            weight = salience[i] - salience[j]
            if fall[i] < fall[j]:
                weight = -weight
            coefficient += weight
            total += abs(weight)
    return coefficient / total


@pytest.mark.parametrize("groups", [2, 7, 14])
def test_saco_is_its_papers_algorithm(session, picture, saliency, groups):
    question = Question(picture, saliency, 1)
    found = saco(session, question, groups=groups)
    assert found == pytest.approx(slow_saco(session, question, groups), abs=1e-6)
    # In batches of at most 16, and the picture itself once.
    assert sum(session.sizes[: 1 + -(-groups // 16)]) == groups + 1


def contributions(session, picture):
    """Of each pixel to a linear model's score of class 1, (28,28)."""
    gain = (session.weights[1] - session.weights.mean(axis=0)).reshape(3, 28, 28)
    return (gain * picture).sum(axis=0)


def test_saco_is_1_for_a_true_map_and_minus_1_for_its_opposite(session, picture):
    true = contributions(session, picture)
    canvas = ["zero"] * 2
    best, worst = (
        saco(session, Question(picture, s, 1), canvas=c)
        for s, c in zip((true, -true), canvas, strict=True)
    )
    assert best > 0.99
    assert worst < -0.99
    assert saco(session, Question(picture, np.ones((28, 28), np.float32), 1)) == 0
    # Neither a constant nor a scale matters.
    question = Question(picture, 3 * true + 5, 1)
    assert saco(session, question, canvas="zero") == pytest.approx(best, abs=1e-6)


def slow_mufidelity(session, question, subsets, share, seed):
    rng = np.random.default_rng(seed)
    before = session.predict(question.pixels[None])[0, question.target]
    canvas = empty_canvas(question.pixels, "zero")
    attributed, fallen = [], []
    for _ in range(subsets):
        hidden, total = question.pixels.copy(), 0.0
        for patch in rng.choice(49, round(share * 49), replace=False):
            y, x = 4 * (patch // 7), 4 * (patch % 7)
            hidden[:, y : y + 4, x : x + 4] = canvas[:, y : y + 4, x : x + 4]
            total += float(question.saliency[y : y + 4, x : x + 4].astype(np.float64).sum())
        attributed.append(total)
        fallen.append(before - session.predict(hidden[None])[0, question.target])
    return np.corrcoef(attributed, fallen)[0, 1]


@pytest.mark.parametrize(("subsets", "share"), [(5, 0.2), (40, 0.5)])
def test_mufidelity_is_its_papers_correlation(session, picture, saliency, subsets, share):
    question = Question(picture, saliency, 2)
    found = mufidelity(session, question, (7, 7), subsets=subsets, share=share, seed=4)
    assert found == pytest.approx(slow_mufidelity(session, question, subsets, share, 4), abs=1e-4)


def test_mufidelity_of_a_true_map_is_near_1_and_of_a_flat_one_0(session, picture):
    question = Question(picture, contributions(session, picture), 1)
    assert mufidelity(session, question, (7, 7)) > 0.8
    flat = Question(picture, np.zeros((28, 28), np.float32), 1)
    assert mufidelity(session, flat, (7, 7)) == 0
    # Patches need not divide the picture.
    assert -1 <= mufidelity(session, question, (5, 9), subsets=8) <= 1


def test_sparseness_is_the_gini_index(saliency):
    heat = (saliency - saliency.min()) / np.ptp(saliency)
    flat = heat.reshape(-1).astype(np.float64)
    between = np.abs(flat[:, None] - flat[None]).mean()
    assert sparseness(saliency) == pytest.approx(between / (2 * flat.mean()))
    single = np.zeros((28, 28), np.float32)
    assert sparseness(single) == 0
    single[3, 4] = 1
    assert sparseness(single) == pytest.approx(1 - 1 / 784)
    assert sparseness(5 + 2 * single) == pytest.approx(1 - 1 / 784)


def test_a_map_without_chance_is_the_same_under_another_seed(explainer, picture):
    plain = {"noise_std": 0.0}
    found = explainer.explain(picture, 1, **plain).saliency[0]
    assert seed_correlation(explainer, plain, Question(picture, found, 1)) == pytest.approx(1)
    noisy = {"noise_std": 5.0}
    found = explainer.explain(picture, 1, **noisy).saliency[0]
    assert seed_correlation(explainer, noisy, Question(picture, found, 1)) < 0.999


def test_the_other_class_is_the_likeliest_that_is_not_the_target(explainer, picture, monkeypatch):
    scores = explainer.session.predict(picture[None])[0]
    first, second, _ = np.argsort(-scores)
    asked = []
    plain = explainer.explain

    def explain(pixels, target, **settings):
        asked.append(target)
        return plain(pixels, target, **settings)

    monkeypatch.setattr(explainer, "explain", explain)
    found = plain(picture, int(second)).saliency[0]
    value = class_correlation(explainer, {}, Question(picture, found, int(second)))
    assert asked == [first]
    assert -1 <= value < 1


def test_a_map_that_no_method_made_has_no_other_seed_and_class(explainer, picture, saliency):
    question = Question(picture, saliency, 0)
    found = figures_of(METRICS, explainer, None, "zero")(question)
    assert found.keys() == {"saco", "mufidelity", "sparseness"}
    settings = {"estimator": "fast"}
    assert figures_of(METRICS, explainer, settings, "zero")(question).keys() == METRICS.keys()
