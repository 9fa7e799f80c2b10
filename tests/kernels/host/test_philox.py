"""Philox and Box-Muller: the NumPy twin and the device logic against published and plain values."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import blend as oracle
from vitcx.kernels.host.philox import philox4x32_10, standard_normals

# Random123's known answers for philox4x32 with ten rounds: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

# The twin rounds the angle 2 pi u to float32: half a place at 2 pi is 2.4e-7, times the largest
# radius of 5.77, and a few roundings more.
TWIN_TO_EXACT = 3e-6
# Without that step the device logic is nearer: 1e-7 in each function, times the radius.
DEVICE_TO_EXACT = 1.2e-6
TWIN_TO_DEVICE = TWIN_TO_EXACT + DEVICE_TO_EXACT

word = st.integers(0, 2**32 - 1)


def as_arrays(counter):
    return tuple(np.array([c], dtype=np.uint64) for c in counter)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_published_vectors(counter, key, expected, shim):
    assert tuple(int(w[0]) for w in philox4x32_10(as_arrays(counter), key)) == expected
    assert oracle.philox4x32_10(counter, key) == expected
    assert device_words(shim, counter, key) == expected


def device_words(shim, counter, key):
    out = np.empty(4, dtype=np.uint32)
    shim("philox", np.array(counter, np.uint32), np.array(key, np.uint32), out)
    return tuple(int(w) for w in out)


@given(counter=st.tuples(word, word, word, word), key=st.tuples(word, word))
@settings(max_examples=200)
def test_three_implementations_give_the_same_words(counter, key, shim):
    expected = oracle.philox4x32_10(counter, key)
    assert tuple(int(w[0]) for w in philox4x32_10(as_arrays(counter), key)) == expected
    assert device_words(shim, counter, key) == expected


def test_scratch_changes_nothing():
    counter = (
        np.arange(5, dtype=np.uint64)[None, :],
        np.arange(3, dtype=np.uint64)[:, None],
        np.full((1, 1), 7, np.uint64),
        np.full((1, 1), 9, np.uint64),
    )
    scratch = np.full((6, 3, 5), 12345, np.uint64)
    plain = philox4x32_10(counter, (1, 2))
    assert np.array_equal(plain, philox4x32_10(counter, (1, 2), scratch))
    assert plain.shape == (4, 3, 5)


def device_normals(shim, seed, mask_index, shape):
    channels, height, width = shape
    quads = -(-width // 4)
    out = np.empty((channels, height, quads, 4), np.float32)
    four = np.empty(4, np.float32)
    for c, y, q in np.ndindex(channels, height, quads):
        shim("four_normals", ctypes.c_uint64(seed), mask_index, c, y, q, four)
        out[c, y, q] = four
    return out.reshape(channels, height, quads * 4)[:, :, :width]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("shape", [(3, 8, 12), (1, 5, 7), (2, 3, 1)])
def test_normals_agree(seed, shape, shim):
    twin = standard_normals(seed, 11, shape)
    device = device_normals(shim, seed, 11, shape)
    exact = np.array([oracle.normal(seed, 11, *place) for place in np.ndindex(shape)])
    exact = exact.reshape(shape)
    assert twin.dtype == np.float32
    assert np.abs(twin - exact).max() < TWIN_TO_EXACT
    assert np.abs(device - exact).max() < DEVICE_TO_EXACT
    assert np.abs(twin - device).max() < TWIN_TO_DEVICE


def test_functions_over_every_argument(shim):
    """All 2^24 arguments there are of the device's logarithm, cosine and sine."""
    errors = np.empty(3)
    shim("function_errors", errors)
    assert errors[0] < 1e-7  # logarithm, relative
    assert errors[1] < 1e-7  # cosine, absolute
    assert errors[2] < 1e-7  # sine, absolute


@pytest.mark.parametrize("size", [(2, 6, 9), (1, 3, 4)])
def test_a_larger_image_begins_with_the_same_noise(size):
    small = standard_normals(5, 3, size)
    large = standard_normals(5, 3, (size[0] + 1, size[1] + 4, size[2] + 5))
    assert np.array_equal(large[: size[0], : size[1], : size[2]], small)


# Statistics with a fixed seed: the bounds are four standard errors for the number of values drawn.
SHAPE = (3, 224, 224)
COUNT = 3 * 224 * 224


def test_moments():
    values = standard_normals(2026, 0, SHAPE).astype(np.float64).ravel()
    error = 4 / np.sqrt(COUNT)
    assert abs(values.mean()) < error
    assert abs(values.var() - 1) < error * np.sqrt(2)
    assert abs((values**3).mean()) < error * np.sqrt(15)
    assert abs((values**4).mean() - 3) < error * np.sqrt(96)
    assert np.abs(values).max() < np.sqrt(48 * np.log(2)) + 1e-6


def test_distribution_function():
    """Kolmogorov-Smirnov's distance below its 0.1 % point, 1.95 / sqrt(n)."""
    from scipy.special import ndtr

    values = np.sort(standard_normals(2026, 1, SHAPE).astype(np.float64).ravel())
    expected = ndtr(values)
    steps = np.arange(COUNT + 1) / COUNT
    distance = max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())
    assert distance < 1.95 / np.sqrt(COUNT)


def correlation(a, b):
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_no_correlation_between_masks_channels_seeds_and_neighbours():
    draws = [standard_normals(2026, k, SHAPE) for k in range(4)]
    whole, channel = 4 / np.sqrt(COUNT), 4 / np.sqrt(224 * 224)
    for i in range(4):
        for j in range(i):
            assert abs(correlation(draws[i], draws[j])) < whole
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(correlation(draws[0][a], draws[0][b])) < channel
    assert abs(correlation(draws[0], standard_normals(2027, 0, SHAPE))) < whole
    assert abs(correlation(draws[0], standard_normals(2026 + 2**32, 0, SHAPE))) < whole
    for axis in (1, 2):
        for step in (1, 2, 3, 4):
            moved = np.roll(draws[0], step, axis=axis)
            assert abs(correlation(draws[0], moved)) < whole
    # The pair that shares a radius: independent, so its squares are uncorrelated too.
    pairs = draws[0].reshape(-1, 2).astype(np.float64) ** 2
    assert abs(correlation(pairs[:, 0], pairs[:, 1])) < 4 / np.sqrt(COUNT / 2)
