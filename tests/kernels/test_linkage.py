"""Device logic of the clustering against SciPy, its oracle, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import linkage as oracle
from vitcx.runtime.method.clustering import cluster
from vitcx.runtime.method.masks import cosine_distances, vit_masks

REFUSED = -1


def linkage(shim, distances, thresholds, kept=None):
    """For each picture the label of each mask, -1 for those left out; None where it is refused."""
    distances = np.array(distances, np.float32)
    pictures, count, _ = distances.shape
    kept = np.ones((pictures, count), np.int32) if kept is None else kept.astype(np.int32)
    room = np.full((pictures, 6, count), -7, np.int32)
    members = np.full((pictures, count), -7, np.int32)
    offsets = np.full((pictures, count + 1), -7, np.int32)
    clusters = np.full(pictures, -7, np.int32)
    shim(
        "complete_linkage",
        distances,
        np.ascontiguousarray(kept),
        np.array(thresholds, np.float32),
        room,
        members,
        offsets,
        clusters,
        pictures,
        count,
    )
    return [
        None if clusters[i] == REFUSED else labels_of(members[i], offsets[i], clusters[i], count)
        for i in range(pictures)
    ]


def labels_of(members, offsets, clusters, count):
    found = np.full(count, -1)
    for number in range(clusters):
        own = members[offsets[number] : offsets[number + 1]]
        assert (np.diff(own) > 0).all()
        found[own] = number
    assert offsets[0] == 0 or clusters == 0
    return found


def symmetric(values):
    distances = np.maximum(values, values.T)
    np.fill_diagonal(distances, 0)
    return distances


def random_distances(count, seed, ties=None):
    """Of points in space, or of so many different values, which tie."""
    rng = np.random.default_rng(seed)
    if ties is not None:
        return symmetric(rng.integers(0, ties, (count, count)).astype(np.float32) / ties)
    points = rng.normal(size=(count, 3))
    return np.linalg.norm(points[:, None] - points, axis=2).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 64, 200])
def test_without_ties_the_clusters_are_scipys(count, shim):
    for seed in range(8):
        distances = random_distances(count, seed)
        thresholds = (0.0, 0.3, 0.7, 1.5, 3.0, 100.0)
        found = linkage(shim, [distances] * len(thresholds), thresholds)
        for threshold, ours in zip(thresholds, found, strict=True):
            np.testing.assert_array_equal(ours, cluster(distances, np.float32(threshold)))


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.1, 0.3])
def test_the_clusters_of_masks_are_scipys(threshold, shim):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        patterns = rng.normal(size=(12, 8 * 8))
        mixed = rng.normal(size=(150, 12)) @ patterns + 0.2 * rng.normal(size=(150, 64))
        masks = vit_masks(mixed.reshape(150, 8, 8).astype(np.float32), (64, 64))
        distances = cosine_distances(masks, (64, 64))
        (ours,) = linkage(shim, [distances], [threshold])
        np.testing.assert_array_equal(ours, cluster(distances, np.float32(threshold)))


@given(
    count=st.integers(1, 14),
    ties=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    threshold=st.sampled_from([0.0, 0.2, 0.34, 0.5, 0.75, 1.0]),
)
@settings(max_examples=50)
def test_with_ties_the_clusters_are_the_oracles_and_as_large_as_they_may_be(
    count, ties, seed, threshold, shim
):
    distances = random_distances(count, seed, ties)
    limit = np.float32(threshold)
    (ours,) = linkage(shim, [distances], [limit])
    clusters, _ = oracle.complete_linkage(distances, limit)
    np.testing.assert_array_equal(ours, oracle.labels(clusters, count))
    for one in clusters:
        assert oracle.farthest(distances, one, one) <= limit
        for other in clusters:
            assert one is other or oracle.farthest(distances, one, other) > limit


def test_ties_that_leave_no_choice_are_scipys(shim):
    """Every mask three times: their distances are 0, whichever merge first."""
    for seed in range(5):
        distances = np.repeat(np.repeat(random_distances(20, seed), 3, axis=0), 3, axis=1)
        for threshold in (0.0, 0.5, 1.5):
            (ours,) = linkage(shim, [distances], [threshold])
            np.testing.assert_array_equal(ours, cluster(distances, threshold))


def test_clusters_at_exactly_the_threshold_merge(shim):
    distances = symmetric(np.array([[0, 0.25, 0.5], [0, 0, 0.5], [0, 0, 0]], np.float32))
    found = linkage(shim, [distances] * 3, [0.25, 0.5, np.nextafter(np.float32(0.25), 0)])
    assert [labels.tolist() for labels in found] == [[0, 0, 1], [0, 0, 0], [0, 1, 2]]


def test_masks_that_are_not_kept_are_in_no_cluster(shim):
    distances = random_distances(30, 1)
    kept = np.random.default_rng(0).random((1, 30)) > 0.3
    distances[~kept[0]] = distances[:, ~kept[0]] = 0  # nobody looks at them
    (ours,) = linkage(shim, [distances], [1.0], kept)
    assert (ours[~kept[0]] == -1).all()
    expected = cluster(distances[np.ix_(kept[0], kept[0])], 1.0)
    np.testing.assert_array_equal(ours[kept[0]], expected)
    (nothing,) = linkage(shim, [distances], [1.0], np.zeros((1, 30)))
    assert (nothing == -1).all()


def test_what_is_no_number_is_refused_and_the_other_pictures_are_not(shim):
    good = random_distances(12, 2)
    bad = good.copy()
    bad[3, 7] = bad[7, 3] = np.nan
    kept = np.ones((3, 12))
    kept[2, 5] = -1  # an embedding that is no number
    found = linkage(shim, [bad, good, good], [1.0] * 3, kept)
    assert found[0] is None
    assert found[2] is None
    np.testing.assert_array_equal(found[1], cluster(good, 1.0))


def test_rounds_are_few():
    """A hundred masks take about as many rounds as their number has bits."""
    distances = random_distances(100, 3)
    _, rounds = oracle.complete_linkage(distances, 100.0)
    assert rounds <= 25
