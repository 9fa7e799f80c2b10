"""Device logic of masks and aggregation against the NumPy modules that fix their meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import squareform

from vitcx.kernels.host.upsampling import axis_operator, upsample
from vitcx.runtime.method.aggregation import aggregate
from vitcx.runtime.method.masks import cosine_distances, merge_masks, vit_masks

# Values are of order 1; the interpolations differ in a few float32 roundings.
TOLERANCE = 2e-6
# Cosines are quotients of sums over all cells: float32 sums of up to 200 terms of order 1.
COSINE_TOLERANCE = 5e-6

GEOMETRIES = [
    ((14, 14), (224, 224)),
    ((3, 5), (17, 23)),
    ((7, 4), (7, 4)),  # one sample per cell
    ((9, 8), (4, 5)),  # cells without a sample
    ((1, 1), (6, 6)),
    ((1, 6), (5, 48)),
]


def embedding(count, grid, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *grid)).astype(np.float32)


def normalise(shim, channels, size):
    masks = np.empty_like(channels)
    kept = np.full(len(channels), -1, np.int32)
    shim("normalise", channels, masks, kept, len(channels), *channels.shape[1:], *size)
    return masks, kept.astype(bool)


@pytest.mark.parametrize(("grid", "size"), GEOMETRIES)
@pytest.mark.parametrize("lanes", [1, 32])
def test_extremes_are_those_of_the_full_surface(grid, size, lanes, shim):
    for channel in embedding(20, grid):
        found = np.empty(2, np.float32)
        shim("extremes", channel, *grid, *size, lanes, found)
        surface = upsample(channel, size)
        np.testing.assert_allclose(found, [surface.min(), surface.max()], rtol=0, atol=TOLERANCE)


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100)
def test_extremes_for_any_geometry(grid, size, seed, shim):
    channel = embedding(1, grid, seed)[0]
    found = np.empty(2, np.float32)
    shim("extremes", channel, *grid, *size, 32, found)
    surface = upsample(channel, size)
    np.testing.assert_allclose(found, [surface.min(), surface.max()], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("grid", "size"), [g for g in GEOMETRIES if g[0] != (1, 1)])
def test_normalised_masks(grid, size, shim):
    channels = embedding(12, grid)
    channels[3] = 2.5
    channels[4] = 0
    channels[5] = 1000 + 1e-4 * channels[5]  # the variation is within rounding
    masks, kept = normalise(shim, channels, size)
    assert not kept[[3, 4, 5]].any()
    assert (masks[~kept] == 0).all()
    # Relative: where a few samples see a grid, m itself may lie far outside [0, 1].
    np.testing.assert_allclose(masks[kept], vit_masks(channels, size), rtol=1e-5, atol=TOLERANCE)


def test_a_single_cell_is_constant(shim):
    masks, kept = normalise(shim, embedding(3, (1, 1)), (6, 6))
    assert not kept.any()
    assert (masks == 0).all()


def gram(size, cells):
    operator = axis_operator(size, cells).astype(np.float64)
    return (operator.T @ operator).astype(np.float32)


@pytest.mark.parametrize(("grid", "size"), [g for g in GEOMETRIES if g[0] != (1, 1)])
def test_distances(grid, size, shim):
    masks = vit_masks(embedding(15, grid), size)
    count = len(masks)
    weighted = np.empty_like(masks)
    rows, columns = gram(size[0], grid[0]), gram(size[1], grid[1])
    shim("gram_apply", masks, rows, columns, weighted, count, *grid)
    products = np.ascontiguousarray(masks.reshape(count, -1) @ weighted.reshape(count, -1).T)
    both = np.stack([products, products])
    shim("cosine_distance", both, 2, count)
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_array_equal(both[0], both[0].T)
    np.testing.assert_array_equal(np.diag(both[0]), np.diag(products))
    condensed = both[0][np.triu_indices(count, 1)]
    expected = squareform(cosine_distances(masks, size), checks=False)
    np.testing.assert_allclose(condensed, expected, rtol=0, atol=COSINE_TOLERANCE)
    pixels = np.stack([upsample(m, size).ravel() for m in masks]).astype(np.float64)
    norms = np.linalg.norm(pixels, axis=1)
    literal = 1 - (pixels @ pixels.T) / norms[:, None] / norms
    np.testing.assert_allclose(
        condensed, literal[np.triu_indices(count, 1)], rtol=0, atol=COSINE_TOLERANCE
    )


def test_a_mask_of_zeros_is_at_distance_one(shim):
    products = np.array([[4, 0, 2], [0, 0, 0], [2, 0, 1]], np.float32)
    shim("cosine_distance", products, 1, 3)
    assert products[np.triu_indices(3, 1)].tolist() == [1, 0, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_channel_with_others_than_numbers_is_refused(value, shim):
    channels = embedding(4, (3, 4))
    channels[2, 1, 3] = value
    masks = np.empty_like(channels)
    kept = np.empty(4, np.int32)
    shim("normalise", channels, masks, kept, 4, 3, 4, 24, 32)
    assert kept.tolist() == [1, 1, -1, 1]
    assert np.isfinite(masks).all()


@pytest.mark.parametrize("how", ["mean", "renormalised"])
def test_cluster_masks(how, shim):
    grid, size = (5, 6), (40, 44)
    masks = vit_masks(embedding(10, grid), size)
    masks[9] = 1 - masks[8]  # this pair's mean is constant: it must stay
    labels = np.array([0, 1, 0, 2, 1, 1, 2, 0, 3, 3])
    members = np.argsort(labels, kind="stable").astype(np.int32)
    offsets = np.zeros(11, np.int32)
    offsets[:5] = np.searchsorted(np.sort(labels), np.arange(5))
    # Two pictures, the second one's masks the other way round, and nothing of a third.
    others = np.ascontiguousarray(masks[::-1])
    out = np.full((3, 10, *grid), 7, np.float32)
    shim(
        "cluster_masks",
        np.stack([masks, others, masks]),
        np.stack([members, members, members]),
        np.stack([offsets, offsets, offsets]),
        np.array([4, 3, -1], np.int32),
        np.array([["mean", "renormalised"].index(how)] * 3, np.int32),
        out,
        3,
        10,
        *grid,
        *size,
    )
    expected = merge_masks(masks, labels, size, how)
    np.testing.assert_allclose(out[0, :4], expected, rtol=0, atol=5 * TOLERANCE)
    np.testing.assert_allclose(out[0, 3], 0.5, atol=TOLERANCE)
    expected = merge_masks(others, labels, size, how)
    np.testing.assert_allclose(out[1, :3], expected[:3], rtol=0, atol=5 * TOLERANCE)
    assert (out[0, 4:] == 7).all()
    assert (out[1, 3:] == 7).all()
    assert (out[2] == 7).all()


@pytest.mark.parametrize(("grid", "size"), GEOMETRIES)
@pytest.mark.parametrize("correct", [True, False])
def test_aggregation(grid, size, correct, shim):
    generator = np.random.default_rng(3)
    masks = generator.random((6, *grid), dtype=np.float32)
    masks[:, :, grid[1] // 2 :] = 0  # no mask covers these: eq. 5 says 0 there
    impacts = generator.normal(size=(2, 6)).astype(np.float32)
    low = np.empty((3, *grid), np.float32)
    shim("weighted_masks", impacts, masks, low, 2, 6, grid[0] * grid[1])
    saliency, coverage = np.empty((2, *size), np.float32), np.empty(size, np.float32)
    shim("saliency", low, saliency, coverage, 2, *grid, *size, int(correct))
    expected, expected_coverage = aggregate(masks, impacts, size, correct_coverage=correct)
    np.testing.assert_allclose(coverage, expected_coverage, rtol=0, atol=TOLERANCE)
    # At the rim of the covered part both sides of the quotient are small.
    np.testing.assert_allclose(saliency, expected, rtol=0, atol=20 * TOLERANCE)
    if grid[1] == 6:
        assert (saliency[..., -1] == 0).all()


def test_coverage_may_be_left_out(shim):
    low = np.ones((2, 2, 2), np.float32)
    saliency = np.empty((1, 4, 4), np.float32)
    shim("saliency", low, saliency, None, 1, 2, 2, 4, 4, 1)
    assert (saliency == 1).all()
