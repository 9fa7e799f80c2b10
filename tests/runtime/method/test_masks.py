"""Low-resolution mask algebra against the pixel-resolution oracle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracle import vitcx as oracle
from tests.oracle.upsampling import upsample as slow_upsample
from vitcx.kernels.host.upsampling import axis_operator, upsample
from vitcx.runtime.method.clustering import cluster
from vitcx.runtime.method.masks import cosine_distances, extremes, merge_masks, vit_masks

# float32 masks in [0, 1]: a few roundings of 6e-8 each, summed over a patch grid.
MASK_ATOL = 2e-6
# Cosines are sums of H W products in float32; 2.5e-6 was measured for 14 to 224, D = 768.
COSINE_ATOL = 5e-6

# torch makes its sampling positions in float32, up to 6e-7 of a cell away at 14 cells.
TORCH_ATOL = 1e-5

# (grid, size): even and odd factors, factors that are no whole number, 1, and not square.
GEOMETRIES = [
    ((4, 4), (16, 16)),
    ((3, 5), (9, 25)),
    ((5, 3), (12, 10)),
    ((2, 7), (13, 22)),
    ((1, 4), (6, 8)),
    ((6, 6), (6, 6)),
    ((1, 1), (5, 4)),
]


def embedding_of(grid, channels=9, seed=0, offset=0.0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(channels, *grid)) + offset).astype(np.float32)


@pytest.mark.parametrize(("grid", "size"), GEOMETRIES)
def test_upsampling_is_the_bilinear_definition(grid, size):
    low = embedding_of(grid, 1)[0]
    np.testing.assert_allclose(upsample(low, size), slow_upsample(low, size), atol=MASK_ATOL)


@pytest.mark.parametrize(("size", "cells"), [(224, 14), (97, 13), (12, 12), (5, 1)])
def test_rows_of_the_operator_sum_to_one(size, cells):
    np.testing.assert_allclose(axis_operator(size, cells).sum(axis=1), 1, atol=2e-7)


def test_upsampling_is_what_torch_does():
    torch = pytest.importorskip("torch")
    low = embedding_of((14, 10), 3)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(low)[None], size=(224, 150), mode="bilinear", align_corners=False
    )[0].numpy()
    np.testing.assert_allclose(upsample(low, (224, 150)), expected, atol=TORCH_ATOL)


@pytest.mark.parametrize(("grid", "size"), GEOMETRIES)
def test_extremes_need_no_pixels(grid, size):
    low = embedding_of(grid, 20)
    pixels = [slow_upsample(channel, size) for channel in low]
    least, greatest = extremes(low, size)
    np.testing.assert_allclose(least, [p.min() for p in pixels], atol=MASK_ATOL)
    np.testing.assert_allclose(greatest, [p.max() for p in pixels], atol=MASK_ATOL)


@pytest.mark.parametrize(("grid", "size"), GEOMETRIES[:5])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_vit_masks_are_the_normalised_feature_maps(grid, size, offset):
    embedding = embedding_of(grid, offset=offset)
    expected = oracle.vit_masks(embedding, size)
    masks = vit_masks(embedding, size)
    assert len(masks) == len(expected)
    for mask, pixels in zip(masks, expected, strict=True):
        # An offset costs float32 that many bits of the mask.
        np.testing.assert_allclose(upsample(mask, size), pixels, atol=MASK_ATOL * (1 + offset))


def test_constant_channels_are_left_out():
    embedding = embedding_of((4, 4), 5)
    embedding[1] = 3.3
    embedding[4] = 0
    masks = vit_masks(embedding, (16, 16))
    np.testing.assert_array_equal(masks, vit_masks(embedding[[0, 2, 3]], (16, 16)))
    assert vit_masks(embedding[[1, 4]], (16, 16)).shape == (0, 4, 4)


@pytest.mark.parametrize(("grid", "size"), GEOMETRIES[:5])
def test_cosines_come_from_the_gram_matrix(grid, size):
    masks = vit_masks(embedding_of(grid), size)
    pixels = [slow_upsample(mask, size) for mask in masks]
    expected = [[oracle.distance(a, b) for b in pixels] for a in pixels]
    distances = cosine_distances(masks, size)
    np.testing.assert_allclose(distances, expected, atol=COSINE_ATOL)
    np.testing.assert_array_equal(distances, distances.T)
    assert (np.diagonal(distances) == 0).all()


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("how", ["mean", "renormalised"])
def test_clusters_and_their_masks(threshold, how):
    grid, size = (4, 5), (12, 20)
    embedding = embedding_of(grid, 12)
    slow = oracle.vit_masks(embedding, size)
    clusters = oracle.complete_linkage(slow, threshold)
    masks = vit_masks(embedding, size)
    labels = cluster(cosine_distances(masks, size), threshold)
    assert [np.flatnonzero(labels == k).tolist() for k in range(labels.max() + 1)] == clusters
    merged = merge_masks(masks, labels, size, how)
    expected = oracle.cluster_masks(slow, clusters, how)
    for mask, pixels in zip(merged, expected, strict=True):
        np.testing.assert_allclose(upsample(mask, size), pixels, atol=5 * MASK_ATOL)
    if threshold == 0:
        assert len(merged) == 12
    if threshold == 1:
        assert len(merged) == 1  # cosines of non-negative masks are never negative


def test_a_single_mask_is_a_cluster():
    np.testing.assert_array_equal(cluster(np.zeros((1, 1), np.float32), 0.1), [0])


def test_identical_masks_merge_at_threshold_zero():
    distances = np.array([[0, 0, 0.5], [0, 0, 0.5], [0.5, 0.5, 0]], np.float32)
    np.testing.assert_array_equal(cluster(distances, 0.0), [0, 0, 1])


def test_clusters_are_numbered_by_first_member():
    distances = np.full((4, 4), 0.9, np.float32)
    np.fill_diagonal(distances, 0)
    distances[0, 3] = distances[3, 0] = 0.01
    np.testing.assert_array_equal(cluster(distances, 0.1), [0, 1, 2, 0])


def test_members_that_add_up_to_a_constant_keep_their_mean():
    ramp = np.linspace(0, 1, 4, dtype=np.float32)[None, None].repeat(4, axis=1)
    merged = merge_masks(np.concatenate([ramp, 1 - ramp]), np.array([0, 0]), (4, 4), "renormalised")
    np.testing.assert_allclose(merged, 0.5)


@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99)
)
def test_masks_span_zero_to_one_for_any_geometry(h, w, factor_y, factor_x, seed):
    size = (h * factor_y + seed % factor_y, w * factor_x)
    embedding = embedding_of((h, w), 4, seed)
    pixels = upsample(vit_masks(embedding, size), size)
    for mask in pixels:
        assert abs(mask.min()) < 1e-5
        assert abs(mask.max() - 1) < 1e-5
