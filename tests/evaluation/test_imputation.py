"""ROAD's noisy linear imputation against its definition, a pixel and a neighbour at a time."""

import numpy as np
import pytest

from vitcx.evaluation import imputation
from vitcx.evaluation.imputation import NOISE_STD, impute


def slow_imputation(pixels, hidden):
    """One dense equation for each hidden pixel: itself is the weighted mean of its neighbours."""
    height, width = hidden.shape
    unknown = [(y, x) for y in range(height) for x in range(width) if hidden[y, x]]
    left = np.zeros((len(unknown), len(unknown)))
    right = np.zeros((len(unknown), 3))
    for row, (y, x) in enumerate(unknown):
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                v, u = y + down, x + across
                if (down, across) == (0, 0) or not (0 <= v < height and 0 <= u < width):
                    continue
                weight = 1 / 12 if down and across else 1 / 6
                left[row, row] += weight
                if hidden[v, u]:
                    left[row, unknown.index((v, u))] -= weight
                else:
                    right[row] += weight * pixels[:, v, u]
    result = pixels.astype(np.float64)
    for (y, x), colour in zip(unknown, np.linalg.solve(left, right), strict=True):
        result[:, y, x] = colour
    return result


@pytest.mark.parametrize("size", [(9, 14), (16, 16), (3, 25), (1, 7)])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9, 0.99])
def test_hidden_pixels_are_the_weighted_means_of_their_neighbours(size, share, monkeypatch):
    monkeypatch.setattr(imputation, "NOISE_STD", 0.0)
    rng = np.random.default_rng(int(100 * share))
    pixels = rng.normal(size=(3, *size)).astype(np.float32)
    hidden = rng.random(size) < share
    hidden.flat[0] = False
    # One is float32, the other float64.
    np.testing.assert_allclose(impute(pixels, hidden), slow_imputation(pixels, hidden), atol=1e-6)


def test_shown_pixels_stay_and_the_noise_does_not_depend_on_what_is_hidden():
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, 40, 40)).astype(np.float32)
    hidden = np.zeros((40, 40), dtype=bool)
    hidden[5:35, 5:35] = True
    found = impute(pixels, hidden)
    np.testing.assert_array_equal(found[:, ~hidden], pixels[:, ~hidden])
    np.testing.assert_array_equal(found, impute(pixels, hidden))
    flat = np.ones_like(pixels)
    noise = impute(flat, hidden) - 1
    assert noise[:, hidden].std() == pytest.approx(NOISE_STD, rel=0.1)
    hidden[10] = False
    still = np.broadcast_to(hidden, noise.shape)
    np.testing.assert_allclose((impute(flat, hidden) - 1)[still], noise[still], atol=1e-6)


def test_nothing_and_everything_can_be_hidden():
    pixels = np.random.default_rng(0).normal(size=(3, 20, 20)).astype(np.float32) + 2
    np.testing.assert_array_equal(impute(pixels, np.zeros((20, 20), dtype=bool)), pixels)
    found = impute(pixels, np.ones((20, 20), dtype=bool))
    np.testing.assert_allclose(found.mean(axis=(1, 2)), pixels.mean(axis=(1, 2)), atol=2e-3)
    assert found.std(axis=(1, 2)).max() < 2 * NOISE_STD
