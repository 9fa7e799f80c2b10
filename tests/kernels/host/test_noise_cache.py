"""The cache of normals: its bound, what it drops, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vitcx.kernels.host import noise
from vitcx.kernels.host.noise import DEFAULT_LIMIT_BYTES, NoiseCache
from vitcx.kernels.host.philox import standard_normals

SHAPE = (3, 4, 8)
BYTES = 3 * 4 * 8 * 4


@pytest.fixture
def made(monkeypatch):
    """The (seed, index) of every generation, in order."""
    calls = []

    def recording(seed, mask_index, shape):
        calls.append((seed, mask_index))
        return standard_normals(seed, mask_index, shape)

    monkeypatch.setattr(noise, "standard_normals", recording)
    return calls


def test_values_and_reuse(made):
    cache = NoiseCache()
    first = cache.normals(1, 2, SHAPE)
    assert cache.normals(1, 2, SHAPE) is first
    assert np.array_equal(first, standard_normals(1, 2, SHAPE))
    assert made == [(1, 2)]
    assert cache.held_bytes == BYTES


def test_another_seed_mask_or_shape_is_another_entry(made):
    cache = NoiseCache()
    for arguments in ((1, 2, SHAPE), (2, 2, SHAPE), (1, 3, SHAPE), (1, 2, (3, 4, 7))):
        cache.normals(*arguments)
    assert len(made) == 4
    assert cache.held_bytes == 3 * BYTES + 3 * 4 * 7 * 4


def test_bound_and_least_recently_used(made):
    cache = NoiseCache(limit_bytes=2 * BYTES)
    cache.normals(0, 0, SHAPE)
    cache.normals(0, 1, SHAPE)
    cache.normals(0, 0, SHAPE)  # 1 is now the older
    cache.normals(0, 2, SHAPE)
    assert cache.held_bytes == 2 * BYTES
    made.clear()
    cache.normals(0, 0, SHAPE)
    cache.normals(0, 1, SHAPE)
    assert made == [(0, 1)]


@pytest.mark.parametrize("limit", [0, BYTES - 1])
def test_what_does_not_fit_is_not_kept(limit):
    cache = NoiseCache(limit_bytes=limit)
    values = cache.normals(0, 0, SHAPE)
    assert cache.held_bytes == 0
    assert np.array_equal(values, standard_normals(0, 0, SHAPE))


def test_entries_are_read_only_and_hold_no_padding():
    for width in (8, 7):  # 7 is cut from 8 columns
        values = NoiseCache().normals(0, 0, (3, 4, width))
        assert values.flags.c_contiguous
        assert values.base is None or values.base.nbytes == values.nbytes
        with pytest.raises(ValueError, match="read-only"):
            values[0, 0, 0] = 1


def test_threads_get_equal_values_and_the_bound_holds():
    cache = NoiseCache(limit_bytes=5 * BYTES)
    start = threading.Barrier(8)

    def work(worker):
        start.wait()
        for step in range(40):
            index = (worker + step) % 10
            assert np.array_equal(cache.normals(0, index, SHAPE), expected[index])
            assert cache.held_bytes <= 6 * BYTES

    expected = [standard_normals(0, k, SHAPE) for k in range(10)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache.held_bytes == 5 * BYTES


def test_default_bound_holds_a_whole_embedding_of_deit_tiny():
    assert DEFAULT_LIMIT_BYTES >= 192 * 3 * 224 * 224 * 4
