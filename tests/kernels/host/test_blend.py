"""The blend's NumPy twin and its device logic, against the paper's text in float64."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import blend as oracle
from vitcx.kernels.host.blend import (
    COMPLEMENT,
    DROPPED,
    KEPT,
    MASKED,
    MASKED_MINUS,
    MINUS,
    NOISY,
    NOISY_MINUS,
    UNMASKED,
    Perturbation,
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
UNTOUCHED = 77.0
PAPERS = (MASKED, NOISY, MASKED_MINUS, NOISY_MINUS)
EVERY_KIND = range(UNMASKED + MINUS + COMPLEMENT + 1)


class DevicePerturbation(ctypes.Structure):
    _fields_ = (
        ("image", ctypes.c_int32),
        ("mask", ctypes.c_int32),
        ("noise", ctypes.c_uint32),
        ("scale", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("rows", ctypes.c_int32 * 4),
        ("kinds", ctypes.c_uint8 * 4),
        ("sharp", ctypes.c_uint32),
    )


class DeviceParams(ctypes.Structure):
    _fields_ = (
        ("images", ctypes.c_void_p),
        ("masks", ctypes.c_void_p),
        ("perturbations", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("grid_height", ctypes.c_int32),
        ("grid_width", ctypes.c_int32),
    )


def device_blend(shim, images, masks, perturbations, out):
    """Run the device logic on host memory."""
    array = (DevicePerturbation * len(perturbations))()
    for slot, one in zip(array, perturbations, strict=True):
        slot.image, slot.mask, slot.noise = one.image, one.mask, one.noise
        slot.scale, slot.seed, slot.sharp = one.scale, one.seed, one.sharp
        slot.rows[:] = [-1] * 4
        for place, (kind, row) in enumerate(one.rows):
            slot.kinds[place], slot.rows[place] = kind, row
    params = DeviceParams(
        images.ctypes.data,
        masks.ctypes.data,
        ctypes.addressof(array),
        out.ctypes.data,
        len(perturbations),
        *images.shape[1:],
        *masks.shape[1:],
    )
    assert shim("blend", ctypes.byref(params)) == 0


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
@pytest.mark.parametrize("sharp", [False, True])
def test_twin_is_the_papers_text(size, grid, sharp):
    images, masks = inputs(1, 1, size, grid)
    if sharp:
        masks = (masks > 0.5).astype(np.float32)
    out = np.full((len(EVERY_KIND) + 1, 3, *size), UNTOUCHED, np.float32)
    halves = [
        Perturbation(0, 0, 4, 123, 0.1, tuple((kind, kind) for kind in EVERY_KIND[part]), sharp)
        for part in (slice(0, 4), slice(4, 8))
    ]
    blend(images, masks, halves, out, NoiseCache())
    normals = standard_normals(123, 4, (3, *size))
    expected = oracle.blended_rows(images[0], masks[0], normals, 0.1, sharp=sharp)
    for kind in EVERY_KIND:
        np.testing.assert_allclose(out[kind], expected[kind], rtol=0, atol=BLEND_TOLERANCE)
    assert (out[-1] == UNTOUCHED).all()


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
    """Several images and masks, bilinear and sharp; every choice of four kinds appears."""
    images, masks = inputs(3, 4, size, grid)
    perturbations, rows = [], 0
    for k, kinds in enumerate(itertools.combinations(EVERY_KIND, 4)):
        places = tuple((kind, rows + i) for i, kind in enumerate(kinds))
        rows += len(kinds)
        perturbations.append(Perturbation(k % 3, k % 4, k, 2**40, scale, places, k % 2 == 0))
    twin = np.full((rows + 1, 3, *size), UNTOUCHED, np.float32)
    blend(images, masks, perturbations, twin, NoiseCache())
    device = np.full_like(twin, UNTOUCHED)
    device_blend(shim, images, masks, perturbations, device)
    np.testing.assert_allclose(device, twin, rtol=0, atol=BLEND_TOLERANCE)
    assert (device[-1] == UNTOUCHED).all()


def test_odd_addresses_take_the_scalar_path(shim):
    """A batch that starts off a 16-byte boundary: same values, no byte outside it touched."""
    images, masks = inputs(1, 1, (8, 16), (2, 2))
    one = Perturbation(0, 0, 0, 9, 0.1, ((MASKED, 0), (NOISY, 1)))
    expected = np.empty((2, 3, 8, 16), np.float32)
    device_blend(shim, images, masks, [one], expected)
    store = np.full(expected.size + 16, UNTOUCHED, np.float32)
    shifted = store[1 : 1 + expected.size].reshape(expected.shape)
    device_blend(shim, images, masks, [one], shifted)
    assert np.array_equal(shifted, expected)
    assert store[0] == UNTOUCHED
    assert (store[1 + expected.size :] == UNTOUCHED).all()


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    grid_height=st.integers(1, 12),
    grid_width=st.integers(1, 12),
    seed=st.integers(0, 2**64 - 1),
    sharp=st.booleans(),
)
@settings(max_examples=60)
def test_any_size_and_grid(height, width, grid_height, grid_width, seed, sharp, shim):
    images, masks = inputs(1, 1, (height, width), (grid_height, grid_width))
    one = Perturbation(0, 0, 7, seed, 0.5, tuple(zip(PAPERS, range(4), strict=True)), sharp)
    twin = np.empty((4, 3, height, width), np.float32)
    blend(images, masks, [one], twin, NoiseCache())
    device = np.empty_like(twin)
    device_blend(shim, images, masks, [one], device)
    np.testing.assert_allclose(
        device, twin, rtol=0, atol=5 * BLEND_TOLERANCE
    )  # σ is 5 times larger


def test_antithetic_rows_mirror_each_other():
    images, masks = inputs(1, 1, (12, 12), (3, 3))
    out = np.empty((4, 3, 12, 12), np.float32)
    one = Perturbation(0, 0, 0, 5, 0.2, tuple((kind, kind) for kind in PAPERS))
    blend(images, masks, [one], out, NoiseCache())
    mask = upsample(masks[0], (12, 12))
    np.testing.assert_allclose(out[MASKED] + out[MASKED_MINUS], 2 * images[0] * mask, atol=1e-6)
    np.testing.assert_allclose(out[NOISY] + out[NOISY_MINUS], 2 * images[0], atol=1e-6)


def test_no_noise_means_no_normals():
    images, masks = inputs(1, 1, (8, 8), (2, 2))
    out = np.empty((2, 3, 8, 8), np.float32)
    cache = NoiseCache()
    blend(
        images,
        masks,
        [
            Perturbation(
                0,
                0,
                0,
                5,
                0.0,
                (
                    (MASKED, 0),
                    (NOISY, 1),
                ),
            )
        ],
        out,
        cache,
    )
    assert cache.held_bytes == 0
    assert np.array_equal(out[1], images[0])
    assert np.array_equal(out[0], images[0] * upsample(masks[0], (8, 8)))


def test_where_the_mask_is_one_there_is_no_noise():
    images, _ = inputs(1, 1, (8, 8), (2, 2))
    out = np.empty((2, 3, 8, 8), np.float32)
    ones = np.ones((1, 2, 2), np.float32)
    blend(
        images,
        ones,
        [
            Perturbation(
                0,
                0,
                0,
                5,
                0.1,
                (
                    (MASKED, 0),
                    (NOISY, 1),
                ),
            )
        ],
        out,
        NoiseCache(),
    )
    assert np.array_equal(out[0], images[0])
    assert np.array_equal(out[1], images[0])


def test_a_team_is_shown_and_the_others_hidden():
    """Patches kept are the picture's, to the pixel; the others are noise alone, and in turn."""
    images, _ = inputs(1, 1, (8, 8), (2, 2))
    team = np.array([[[1, 0], [0, 1]]], np.float32)
    out = np.empty((4, 3, 8, 8), np.float32)
    loud = Perturbation(0, 0, 0, 5, 0.1, ((KEPT, 0), (DROPPED, 1)), sharp=True)
    quiet = Perturbation(0, 0, 0, 5, 0.0, ((KEPT, 2), (DROPPED, 3)), sharp=True)
    blend(images, team, [loud, quiet], out, NoiseCache())
    shown = np.kron(team[0], np.ones((4, 4))).astype(bool)
    hidden = np.float32(0.1) * standard_normals(5, 0, (3, 8, 8))
    for row, kept in ((0, shown), (1, ~shown)):
        assert np.array_equal(out[row][:, kept], images[0][:, kept])
        np.testing.assert_allclose(out[row][:, ~kept], hidden[:, ~kept], atol=1e-7)
        assert np.array_equal(out[row + 2][:, kept], images[0][:, kept])
        assert (out[row + 2][:, ~kept] == 0).all()


def test_the_layout_is_the_headers():
    assert ctypes.sizeof(DevicePerturbation) == 48
    assert DevicePerturbation.rows.offset == 24
    assert DevicePerturbation.kinds.offset == 40
