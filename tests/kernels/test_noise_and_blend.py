"""The NumPy twin against the slow versions, and the noise cache."""

import numpy as np
import pytest

from tests.oracle import noise as slow
from tests.oracle.upsampling import upsample as slow_upsample
from vitcx.kernels.blend import Job, blend
from vitcx.kernels.noise import NoiseCache
from vitcx.kernels.philox import philox4x32_10, standard_normals

# Box-Muller in float32: the angle's rounding (4e-7 at 2 pi) times a radius of at most 5.8.
NORMAL_ATOL = 4e-6
WORD = 0xFFFFFFFF

# Published with Random123 (kat_vectors, philox4x32 10).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, expected):
    words = philox4x32_10(tuple(np.array([c], dtype=np.uint64) for c in counter), key)
    assert tuple(int(w[0]) for w in words) == expected
    assert slow.philox4x32_10(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize("shape", [(3, 4, 8), (1, 3, 7), (2, 1, 1)])
def test_normals_are_the_definition(seed, shape):
    expected = slow.normals(seed, 3, shape)
    np.testing.assert_allclose(standard_normals(seed, 3, shape), expected, atol=NORMAL_ATOL)


def test_normals_do_not_depend_on_the_size_of_the_picture():
    large = standard_normals(7, 2, (3, 30, 33))
    np.testing.assert_array_equal(large[:2, :11, :10], standard_normals(7, 2, (2, 11, 10)))


def test_normals_are_standard_and_independent():
    one, other = standard_normals(1, 0, (3, 128, 128)), standard_normals(1, 1, (3, 128, 128))
    count = one.size
    # Five standard errors each.
    assert abs(one.mean()) < 5 / np.sqrt(count)
    assert abs(one.var() - 1) < 5 * np.sqrt(2 / count)
    assert abs((one**4).mean() - 3) < 5 * np.sqrt(96 / count)
    for a, b in ((one, other), (one[0], one[1]), (one[..., :-1], one[..., 1:])):
        assert abs((a * b).mean()) < 5 / np.sqrt(a.size)


@pytest.mark.parametrize("scale", [0.0, 0.3])
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_rows_are_the_definition(scale, size):
    random = np.random.default_rng(0)
    images = random.normal(size=(2, 3, *size)).astype(np.float32)
    masks = random.random(size=(3, 2, 3)).astype(np.float32)
    jobs = [
        Job(0, 2, 5, 11, scale, (1, 0, 3, 2)),
        Job(1, 0, 1, 12, scale, (-1, 4, -1, -1)),
        Job(1, 1, 0, 12, scale, (5, -1, -1, -1)),
    ]
    out = np.full((7, 3, *size), 99, np.float32)
    blend(images, masks, jobs, out, NoiseCache())
    for job in jobs:
        image = images[job.image].astype(float)
        mask = slow_upsample(masks[job.mask].astype(float), size)
        epsilon = scale * (1 - mask) * slow.normals(job.seed, job.noise, (3, *size))
        expected = (
            image * mask + epsilon,
            image + epsilon,
            image * mask - epsilon,
            image - epsilon,
        )
        for row, values in zip(job.rows, expected, strict=True):
            if row >= 0:
                np.testing.assert_allclose(out[row], values, atol=NORMAL_ATOL)
    assert (out[6] == 99).all()


def test_cache_keeps_within_its_bound_and_drops_the_oldest():
    shape = (1, 4, 4)
    one = standard_normals(0, 0, shape).nbytes
    cache = NoiseCache(limit_bytes=2 * one)
    first = cache.normals(0, 0, shape)
    assert cache.normals(0, 0, shape) is first
    cache.normals(0, 1, shape)
    cache.normals(0, 0, shape)
    cache.normals(0, 2, shape)  # drops 1, the least recently used
    assert cache.held_bytes == 2 * one
    assert cache.normals(0, 0, shape) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 1
    none = NoiseCache(limit_bytes=0)
    assert none.normals(0, 0, shape) is not none.normals(0, 0, shape)
    assert none.held_bytes == 0
