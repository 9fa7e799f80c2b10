"""Preprocessing against timm's own transforms, and the way back."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.runtime.numpy_session import numpy_explainer
from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures import preprocess
from vitcx.runtime.pictures.preprocess import denormalise, prepare

# Both divide 8-bit values in float32; the order of the operations differs by a rounding.
PIXEL_ATOL = 2e-6


def manifest_of(**changes):
    return dataclasses.replace(numpy_explainer().manifest, **changes)


def noise_picture(width, height):
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("shape", [(50, 40), (40, 50), (33, 33), (200, 21), (16, 17), (7, 5)])
@pytest.mark.parametrize(
    ("size", "crop_fraction", "crop_mode"),
    [
        ((32, 32), 0.9, "center"),
        ((32, 32), 1.0, "center"),
        ((24, 40), 0.875, "center"),
        ((32, 24), 0.95, "squash"),
    ],
)
def test_pixels_are_what_timm_makes(shape, size, crop_fraction, crop_mode):
    pytest.importorskip("torch")
    from vitcx.export.timm_import import import_timm

    import_timm()
    from timm.data import create_transform

    picture = noise_picture(*shape)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = create_transform(
        (3, *size),
        interpolation="bicubic",
        mean=mean,
        std=std,
        crop_pct=crop_fraction,
        crop_mode=crop_mode,
    )
    manifest = manifest_of(
        input_size=size,
        mean=mean,
        std=std,
        crop_fraction=crop_fraction,
        crop_mode=crop_mode,
        interpolation="bicubic",
    )
    expected = transform(picture).numpy()
    np.testing.assert_allclose(prepare(picture, manifest).pixels, expected, atol=PIXEL_ATOL)


@pytest.mark.parametrize("shape", [(120, 60), (60, 120), (64, 64)])
def test_the_box_is_what_the_model_saw(shape):
    manifest = manifest_of(input_size=(32, 32), crop_fraction=0.8)
    width, height = shape
    ramp_x = np.linspace(0, 255, width)[None, :].repeat(height, axis=0)
    ramp_y = np.linspace(0, 255, height)[:, None].repeat(width, axis=1)
    picture = Image.fromarray(np.stack([ramp_x, ramp_y, ramp_y], axis=2).astype(np.uint8))
    prepared = prepare(picture, manifest)
    left, top, right, bottom = prepared.box
    values = prepared.pixels * 127.5 + 127.5
    # The colour at the middle of the crop's first and last pixels tells where they came from.
    for measured, start, end, length in (
        (values[0, 16], left, right, width),
        (values[1, :, 16], top, bottom, height),
    ):
        step = (end - start) / 32
        places = (start + step * (np.arange(32) + 0.5) - 0.5) / (length - 1) * 255
        np.testing.assert_allclose(measured[2:-2], places[2:-2], atol=2.5)


def test_a_long_thin_picture_needs_no_gigabytes(monkeypatch):
    picture = noise_picture(400, 9)
    manifest = manifest_of(input_size=(32, 32), crop_fraction=0.9)
    whole = prepare(picture, manifest).pixels
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 1000)
    np.testing.assert_allclose(prepare(picture, manifest).pixels, whole, atol=2 / 127.5)


def test_one_pixel_is_a_picture():
    pixels = prepare(Image.new("RGB", (1, 1), (255, 0, 0)), manifest_of()).pixels
    np.testing.assert_allclose(pixels[0], 1)
    np.testing.assert_allclose(pixels[1:], -1)


def test_normalised_arrays_pass_through():
    manifest = manifest_of()
    array = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)
    prepared = prepare(array, manifest)
    np.testing.assert_array_equal(prepared.pixels, array)
    assert prepared.box == (0, 0, 16, 16)
    back = np.asarray(denormalise(prepared.pixels, manifest)).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(back, np.clip(array, -1, 1), atol=0.5 / 127.5 + 1e-6)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((3, 8, 8), np.float32), r"\(3,16,16\)"),
        (np.zeros((16, 16, 3), np.float32), r"\(3,16,16\)"),
        (np.full((3, 16, 16), np.inf, np.float32), "NaN or infinite"),
        (np.zeros((3, 16, 16), np.int64), "uint8"),
        (12, "cannot explain a int"),
        (None, "cannot explain a NoneType"),
    ],
    ids=repr,
)
def test_what_is_no_picture_is_said(source, words):
    with pytest.raises(InputError, match=words):
        prepare(source, manifest_of())
