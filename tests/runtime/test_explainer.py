"""Whole explanations against the pixel-resolution oracle, and what must not change them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import noise as slow_noise
from tests.oracle import vitcx as oracle
from tests.runtime.numpy_session import numpy_explainer, picture
from vitcx.runtime.errors import EngineError, InputError
from vitcx.runtime.method.aggregation import aggregate

# Saliency is a quotient of sums of float32 masks and scores of about 1.
SALIENCY_ATOL = 2e-5
IMPACT_ATOL = 1e-5

GEOMETRIES = [((4, 4), (16, 16)), ((3, 5), (9, 25)), ((5, 2), (10, 12)), ((2, 2), (2, 2))]


def slow_explanation(
    explainer,
    image,
    distance_threshold=0.1,
    noise_std=0.1,
    seed=0,
    estimator="paper",
    debias=True,
    coverage_correction=True,
    cluster_masks="renormalised",
):
    """The oracle with the product's switches: (saliency by class, impacts (K,C), coverage)."""
    size = explainer.manifest.input_size

    def predict(x):
        return explainer.session.forward(x[None])[0][0]

    # The embedding the product sees is float32; the oracle starts from the same numbers.
    embedding = explainer.session.encode(image[None])[1][0]
    masks = oracle.vit_masks(embedding, size)
    if cluster_masks != "none":
        clusters = oracle.complete_linkage(masks, distance_threshold)
        masks = oracle.cluster_masks(masks, clusters, cluster_masks)
    if not debias:
        noise_std, estimator = 0.0, "fast"
    noise = [slow_noise.normals(seed, k, (3, *size)) for k in range(len(masks))]
    scores = oracle.impacts(predict, image.astype(float), masks, noise, noise_std, estimator)
    maps = [oracle.saliency(masks, column, coverage_correction) for column in scores.T]
    return [saliency for saliency, _ in maps], scores, maps[0][1]


@pytest.mark.parametrize(("grid", "size"), GEOMETRIES)
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"estimator": "fast"},
        {"estimator": "antithetic"},
        {"noise_std": 0.0},
        {"debias": False},
        {"coverage_correction": False},
        {"debias": False, "coverage_correction": False},
        {"cluster_masks": "mean"},
        {"cluster_masks": "none"},
        {"distance_threshold": 0.0},
        {"distance_threshold": 1.0},
        {"noise_std": 1.5, "seed": 2**63 + 1},
    ],
    ids=str,
)
def test_an_explanation_is_the_oracle_s(grid, size, switches):
    image = picture(size, 3)
    with numpy_explainer(grid, size) as explainer:
        result = explainer.explain(image, targets=[2, 0], **switches)
        saliency, impacts, coverage = slow_explanation(explainer, image, **switches)
    np.testing.assert_allclose(result.impacts, impacts[:, [2, 0]].T, atol=IMPACT_ATOL)
    np.testing.assert_allclose(result.coverage, coverage, atol=SALIENCY_ATOL)
    np.testing.assert_allclose(result.saliency[0], saliency[2], atol=SALIENCY_ATOL)
    np.testing.assert_allclose(result.saliency[1], saliency[0], atol=SALIENCY_ATOL)
    assert result.saliency.dtype == np.float32
    assert result.saliency.shape == (2, *size)


@pytest.mark.parametrize(
    ("switches", "rows_per_mask"),
    [
        ({}, 2),
        ({"estimator": "fast"}, 1),
        ({"estimator": "antithetic"}, 4),
        ({"noise_std": 0}, 1),
        ({"debias": False}, 1),
    ],
    ids=str,
)
def test_no_pass_is_spent_twice(switches, rows_per_mask):
    with numpy_explainer() as explainer:
        result = explainer.explain(picture((16, 16)), **switches)
        rows = explainer.session.batches
    assert sum(rows) == rows_per_mask * len(result.masks)
    assert rows[:-1] == [5] * (len(rows) - 1)  # only the last batch may be short
    assert result.settings["forward_passes"] == sum(rows) + 1


def test_any_set_of_classes_costs_one_run():
    with numpy_explainer() as explainer:
        every = explainer.explain(picture((16, 16)), targets="top4")
        rows = sum(explainer.session.batches)
        for i, target in enumerate(every.targets):
            one = explainer.explain(picture((16, 16)), targets=target)
            # A vector times a matrix, a matrix times a matrix: BLAS may add in another order.
            np.testing.assert_allclose(one.saliency[0], every.saliency[i], rtol=4e-7)
    assert rows == 2 * len(every.masks)
    assert list(every.probabilities[list(every.targets)]) == sorted(
        every.probabilities, reverse=True
    )


def test_packing_does_not_change_a_result_and_leaves_no_batch_short():
    images = [picture((16, 16), seed) for seed in range(7)]
    with numpy_explainer() as explainer:
        alone = [explainer.explain(image, targets=[1]) for image in images]
        explainer.session.batches.clear()
        packed = list(explainer.explain_many(iter(images), targets=[1]))
        rows = explainer.session.batches
    assert len(packed) == len(alone)
    for one, other in zip(packed, alone, strict=True):
        np.testing.assert_array_equal(one.saliency, other.saliency)
    assert rows[:-1] == [5] * (len(rows) - 1)
    assert sum(rows) == sum(2 * len(result.masks) for result in alone)


def test_a_bad_picture_fails_alone():
    good = [picture((16, 16), seed) for seed in range(2)]
    bad = np.full((3, 16, 16), np.nan, np.float32)
    with numpy_explainer() as explainer:
        results = list(explainer.try_explain_many([good[0], bad, good[1]]))
        assert isinstance(results[1], InputError)
        for result, image in ((results[0], good[0]), (results[2], good[1])):
            np.testing.assert_array_equal(result.saliency, explainer.explain(image).saliency)
        several = explainer.explain_many([good[0], bad, good[1]])
        np.testing.assert_array_equal(next(several).saliency, results[0].saliency)
        with pytest.raises(InputError, match="NaN"):
            next(several)


def test_the_same_seed_gives_the_same_map_and_another_does_not():
    image = picture((16, 16))
    with numpy_explainer() as explainer:
        first, again, other = (explainer.explain(image, seed=s).saliency for s in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6


def test_a_constant_channel_does_no_harm():
    image = picture((16, 16))
    results = []
    with numpy_explainer() as explainer:
        encode = explainer.session.encode
        for value in (-7.25, 0.0):

            def with_constant(images, value=value):
                probabilities, embedding = encode(images)
                embedding = embedding.copy()
                embedding[:, 3] = value
                return probabilities, embedding

            explainer.session.encode = with_constant
            results.append(explainer.explain(image, cluster_masks="none"))
    for result in results:
        assert len(result.masks) == explainer.manifest.channels - 1
        assert np.isfinite(result.saliency).all()
    np.testing.assert_array_equal(results[0].saliency, results[1].saliency)


def test_an_embedding_that_is_constant_everywhere_gives_an_empty_map(caplog):
    with numpy_explainer() as explainer:
        result = explainer.explain(np.zeros((3, 16, 16), np.float32))
        assert explainer.session.batches == []
    assert result.masks.shape == (0, 4, 4)
    assert not result.saliency.any()
    assert not result.heatmap().any()
    assert "constant" in caplog.text


def test_a_model_that_gives_nan_is_said():
    with numpy_explainer() as explainer:
        explainer.session.head = explainer.session.head * np.nan
        with pytest.raises(EngineError, match="NaN"):
            explainer.explain(picture((16, 16)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"distance_threshold": -0.1}, "distance_threshold"),
        ({"distance_threshold": float("nan")}, "distance_threshold"),
        ({"distance_threshold": "0.1"}, "give a number"),
        ({"noise_std": -1}, "noise_std"),
        ({"noise_std": float("inf")}, "noise_std"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "whole number"),
        ({"estimator": "best"}, "paper, fast, antithetic"),
        ({"cluster_masks": "sum"}, "renormalised, mean, none"),
        ({"debias": 1}, "True or False"),
        ({"targets": 4}, "0 to 3"),
        ({"targets": -1}, "0 to 3"),
        ({"targets": "clas 1"}, "did you mean 'class 1'"),
        ({"targets": "top9"}, "only 4 classes"),
        ({"targets": []}, "empty"),
        ({"targets": 1.0}, "class index"),
        ({"targets": True}, "class index"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_said(settings, words):
    with numpy_explainer() as explainer, pytest.raises(InputError, match=words):
        explainer.explain(picture((16, 16)), **settings)


def test_a_setting_that_does_not_exist_is_said_before_any_work():
    with numpy_explainer() as explainer, pytest.raises(InputError, match="sigma"):
        explainer.explain_many([], sigma=1)


def test_targets_by_name_index_and_numpy_integer():
    with numpy_explainer() as explainer:
        result = explainer.explain(
            picture((16, 16)), targets=["Class 3", 0, np.int64(1)], noise_std=0
        )
    assert result.targets == (3, 0, 1)
    assert result.target_names == ("class 3", "class 0", "class 1")


@given(st.integers(0, 2**32), st.integers(1, 8))
@settings(max_examples=25)
def test_aggregation_properties(seed, count):
    random = np.random.default_rng(seed)
    masks = random.random(size=(count, 3, 4)).astype(np.float32)
    impacts = random.normal(size=(1, count)).astype(np.float32)
    size = (12, 12)
    map_, coverage = aggregate(masks, impacts, size, correct_coverage=True)
    order = random.permutation(count)
    permuted, _ = aggregate(masks[order], impacts[:, order], size, correct_coverage=True)
    np.testing.assert_allclose(map_, permuted, atol=1e-5)
    assert map_.min() >= impacts.min() - 1e-5  # a weighted mean of the impacts
    assert map_.max() <= impacts.max() + 1e-5
    flat, _ = aggregate(masks, np.full_like(impacts, 0.7), size, correct_coverage=True)
    np.testing.assert_allclose(flat[0][coverage > 1e-3], 0.7, rtol=1e-5)


def test_the_map_is_zero_where_no_mask_covers():
    masks = np.zeros((2, 4, 4), np.float32)
    masks[:, :, 3] = 1
    saliency, coverage = aggregate(
        masks, np.ones((1, 2), np.float32), (16, 16), correct_coverage=True
    )
    assert (saliency[0][coverage == 0] == 0).all()
    assert (coverage[:, :8] == 0).all()
    np.testing.assert_allclose(saliency[0][:, 11:], 1)
