"""The blend's NumPy twin and its device logic, against the paper's text in float64."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import blend as oracle
from vitcx.kernels.host.blend import (
    MASKED,
    MASKED_MINUS,
    NOISY,
    NOISY_MINUS,
    ROW_KINDS,
    SKIP,
    Job,
    blend,
)
from vitcx.kernels.host.noise import NoiseCache
from vitcx.kernels.host.philox import standard_normals
from vitcx.kernels.host.upsampling import upsample

# Values are of order 5 (a normalised pixel plus noise), float32 rounds each step to 3e-7 of that,
# and the twin's normals are off by 3e-6 times σ (see test_philox).
BLEND_TOLERANCE = 2e-6
# The device logic interpolates by fused lerps, the twin by two matrix products: a few roundings.
MASK_TOLERANCE = 5e-7
FLOAT32, FLOAT16, BFLOAT16 = range(3)
UNTOUCHED = 77.0


class DeviceJob(ctypes.Structure):
    _fields_ = (
        ("image", ctypes.c_int32),
        ("mask", ctypes.c_int32),
        ("noise", ctypes.c_uint32),
        ("scale", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("rows", ctypes.c_int32 * 4),
    )


class DeviceParams(ctypes.Structure):
    _fields_ = (
        ("images", ctypes.c_void_p),
        ("masks", ctypes.c_void_p),
        ("jobs", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("job_count", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("grid_height", ctypes.c_int32),
        ("grid_width", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


def device_blend(shim, images, masks, jobs, out, dtype):
    """Run the device logic on host memory."""
    array = (DeviceJob * len(jobs))()
    for slot, job in zip(array, jobs, strict=True):
        slot.image, slot.mask, slot.noise = job.image, job.mask, job.noise
        slot.scale, slot.seed = job.scale, job.seed
        slot.rows[:] = job.rows
    params = DeviceParams(
        images.ctypes.data,
        masks.ctypes.data,
        ctypes.addressof(array),
        out.ctypes.data,
        len(jobs),
        *images.shape[1:],
        *masks.shape[1:],
        dtype,
    )
    assert shim("blend", ctypes.byref(params)) == 0


def bfloat16_bits(values):
    """Float32 to bfloat16, ties to even, on integers: the reference."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def inputs(images, masks, size, grid, seed=0):
    generator = np.random.default_rng(seed)
    pictures = generator.normal(size=(images, 3, *size)).astype(np.float32)
    return pictures, generator.random((masks, *grid), dtype=np.float32)


SHAPES = [
    ((16, 16), (2, 2)),
    ((24, 32), (3, 4)),
    ((15, 13), (4, 3)),  # no scale factor is whole; width not a multiple of 4
    ((9, 12), (3, 3)),  # multiple of 4, not of 8
    ((5, 7), (8, 9)),  # a grid finer than the image
    ((1, 1), (1, 1)),
    ((8, 8), (1, 5)),
]


@pytest.mark.parametrize(("size", "grid"), SHAPES)
def test_twin_is_the_papers_text(size, grid):
    images, masks = inputs(1, 1, size, grid)
    out = np.full((5, 3, *size), UNTOUCHED, np.float32)
    job = Job(image=0, mask=0, noise=4, seed=123, scale=0.1, rows=(3, 0, 2, 1))
    blend(images, masks, [job], out, NoiseCache())
    normals = standard_normals(123, 4, (3, *size))
    expected = oracle.blended_rows(images[0], masks[0], normals, 0.1)
    for name, row in zip(ROW_KINDS, job.rows, strict=True):
        np.testing.assert_allclose(out[row], expected[name], rtol=0, atol=BLEND_TOLERANCE)
    assert (out[4] == UNTOUCHED).all()


@pytest.mark.parametrize(("size", "grid"), SHAPES)
def test_device_upsampling(size, grid, shim):
    _, masks = inputs(1, 1, size, grid)
    out = np.empty(size, np.float32)
    shim("upsample", masks[0], out, *grid, *size)
    np.testing.assert_allclose(out, upsample(masks[0], size), rtol=0, atol=MASK_TOLERANCE)
    np.testing.assert_allclose(out, oracle.upsampled(masks[0], size), rtol=0, atol=MASK_TOLERANCE)


@pytest.mark.parametrize(("size", "grid"), SHAPES)
@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_device_logic_is_the_twin(size, grid, scale, shim):
    """Several images and masks; every combination of row kinds appears."""
    images, masks = inputs(3, 4, size, grid)
    jobs, rows = [], 0
    for combination in range(16):
        chosen = [SKIP] * 4
        for kind in range(4):
            if combination >> kind & 1:
                chosen[kind] = rows
                rows += 1
        jobs.append(Job(combination % 3, combination % 4, combination, 2**40, scale, tuple(chosen)))
    twin = np.full((rows + 1, 3, *size), UNTOUCHED, np.float32)
    blend(images, masks, jobs, twin, NoiseCache())
    device = np.full_like(twin, UNTOUCHED)
    device_blend(shim, images, masks, jobs, device, FLOAT32)
    np.testing.assert_allclose(device, twin, rtol=0, atol=BLEND_TOLERANCE)
    assert (device[-1] == UNTOUCHED).all()

    half = np.full(twin.shape, 0, np.float16)
    half[-1] = UNTOUCHED
    device_blend(shim, images, masks, jobs, half, FLOAT16)
    assert np.array_equal(half[:-1], device[:-1].astype(np.float16))
    assert (half[-1] == UNTOUCHED).all()

    brain = np.zeros(twin.shape, np.uint16)
    device_blend(shim, images, masks, jobs, brain, BFLOAT16)
    assert np.array_equal(brain[:-1], bfloat16_bits(device[:-1]))
    assert (brain[-1] == 0).all()


def test_odd_addresses_take_the_scalar_path(shim):
    """A batch that starts off a 16-byte boundary: same values, no byte outside it touched."""
    images, masks = inputs(1, 1, (8, 16), (2, 2))
    job = Job(0, 0, 0, 9, 0.1, (0, 1, SKIP, SKIP))
    expected = np.empty((2, 3, 8, 16), np.float16)
    device_blend(shim, images, masks, [job], expected, FLOAT16)
    store = np.full(expected.size + 16, UNTOUCHED, np.float16)
    shifted = store[1 : 1 + expected.size].reshape(expected.shape)
    device_blend(shim, images, masks, [job], shifted, FLOAT16)
    assert np.array_equal(shifted, expected)
    assert store[0] == UNTOUCHED
    assert (store[1 + expected.size :] == UNTOUCHED).all()


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    grid_height=st.integers(1, 12),
    grid_width=st.integers(1, 12),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_size_and_grid(height, width, grid_height, grid_width, seed, shim):
    images, masks = inputs(1, 1, (height, width), (grid_height, grid_width))
    job = Job(0, 0, 7, seed, 0.5, (0, 1, 2, 3))
    twin = np.empty((4, 3, height, width), np.float32)
    blend(images, masks, [job], twin, NoiseCache())
    device = np.empty_like(twin)
    device_blend(shim, images, masks, [job], device, FLOAT32)
    np.testing.assert_allclose(
        device, twin, rtol=0, atol=5 * BLEND_TOLERANCE
    )  # σ is 5 times larger


def test_rounding_to_16_bits(shim):
    """Every float16, the middles between neighbours and their neighbours, and random bits."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    middles = (finite[1:] + finite[:-1]) / 2
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    above, below = np.nextafter(middles, np.float32(1e9)), np.nextafter(middles, np.float32(-1e9))
    extra = np.array([65519.996, 65520, 1e30, -1e30, 6e-8, 2.9e-8, 0.0, -0.0, np.inf], np.float32)
    values = np.concatenate([finite, middles, above, below, bits, extra])
    out = np.empty(values.size, np.uint16)
    shim("to_float16", values, out, ctypes.c_int64(values.size))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    nan = np.isnan(values)
    assert np.array_equal(out[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(out.view(np.float16)[nan]).all()

    shim("to_bfloat16", values, out, ctypes.c_int64(values.size))
    assert np.array_equal(out[~nan], bfloat16_bits(values)[~nan])
    assert (out[nan] == 0x7FFF).all()


def test_bfloat16_reference_is_torchs():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).normal(size=10_000).astype(np.float32)
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(bfloat16_bits(values), theirs)


def test_antithetic_rows_mirror_each_other():
    images, masks = inputs(1, 1, (12, 12), (3, 3))
    out = np.empty((4, 3, 12, 12), np.float32)
    job = Job(0, 0, 0, 5, 0.2, (MASKED, NOISY, MASKED_MINUS, NOISY_MINUS))
    blend(images, masks, [job], out, NoiseCache())
    mask = upsample(masks[0], (12, 12))
    np.testing.assert_allclose(out[MASKED] + out[MASKED_MINUS], 2 * images[0] * mask, atol=1e-6)
    np.testing.assert_allclose(out[NOISY] + out[NOISY_MINUS], 2 * images[0], atol=1e-6)


def test_no_noise_means_no_normals():
    images, masks = inputs(1, 1, (8, 8), (2, 2))
    out = np.empty((2, 3, 8, 8), np.float32)
    cache = NoiseCache()
    blend(images, masks, [Job(0, 0, 0, 5, 0.0, (0, 1, SKIP, SKIP))], out, cache)
    assert cache.held_bytes == 0
    assert np.array_equal(out[1], images[0])
    assert np.array_equal(out[0], images[0] * upsample(masks[0], (8, 8)))


def test_where_the_mask_is_one_there_is_no_noise():
    images, _ = inputs(1, 1, (8, 8), (2, 2))
    out = np.empty((2, 3, 8, 8), np.float32)
    ones = np.ones((1, 2, 2), np.float32)
    blend(images, ones, [Job(0, 0, 0, 5, 0.1, (0, 1, SKIP, SKIP))], out, NoiseCache())
    assert np.array_equal(out[0], images[0])
    assert np.array_equal(out[1], images[0])


def test_job_layout_is_the_headers():
    assert ctypes.sizeof(DeviceJob) == 40
    assert DeviceJob.rows.offset == 24
