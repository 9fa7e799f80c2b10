"""The other mask-based methods, through the same scheduler, against their slow definitions."""

import numpy as np
import pytest

from vitcx.kernels.host.upsampling import upsample
from vitcx.runtime.errors import InputError
from vitcx.runtime.method.masks import vit_masks
from vitcx.runtime.method.occlusion import occlusion_masks, occlusion_of
from vitcx.runtime.method.random_masks import RISE_CELLS, RISE_SHIFTS, random_masks
from vitcx.runtime.method.registry import METHODS
from vitcx.runtime.settings import Settings

SIZE = (28, 28)


def test_occlusion_is_the_mean_drop_of_the_squares_on_a_pixel(explainer, session, picture):
    result = explainer.explain(picture, 2, method="occlusion", window=8, step=6)
    base = session.predict(picture[None])[0, 2]
    total, count = np.zeros(SIZE), np.zeros(SIZE)
    starts = [0, 6, 12, 18, 20]
    for top in starts:
        for left in starts:
            hidden = picture.copy()
            hidden[:, top : top + 8, left : left + 8] = 0
            drop = base - session.predict(hidden[None])[0, 2]
            total[top : top + 8, left : left + 8] += drop
            count[top : top + 8, left : left + 8] += 1
    assert count.min() >= 1
    np.testing.assert_allclose(result.saliency[0], total / count, atol=1e-5)
    assert result.settings["forward_passes"] == 26


def test_score_cam_is_equation_1_over_every_vit_mask(explainer, session, picture):
    result = explainer.explain(picture, 1, method="score-cam")
    masks = upsample(vit_masks(session.encode(picture[None])[1][0], SIZE), SIZE)
    expected = sum(session.predict((picture * m)[None])[0, 1] * m for m in masks) / len(masks)
    np.testing.assert_allclose(result.saliency[0], expected, atol=1e-5)


def test_rise_weighs_random_masks_by_their_scores(explainer, session, picture):
    result = explainer.explain(picture, 0, method="rise", mask_count=40, seed=5)
    masks = upsample(random_masks(40, 5), SIZE)
    expected = sum(session.predict((picture * m)[None])[0, 0] * m for m in masks) / masks.sum(
        axis=0
    )
    np.testing.assert_allclose(result.saliency[0], expected, atol=1e-5)
    plain = explainer.explain(
        picture, 0, method="rise", mask_count=40, seed=5, coverage_correction=False
    )
    np.testing.assert_allclose(plain.saliency[0], expected * masks.mean(axis=0), atol=1e-5)


def test_a_rise_mask_is_the_bilinear_surface_of_its_shifted_grid():
    """Built directly at 224 pixels: knots at cell centres, half a node at the border left out."""
    side, cells = 224, RISE_CELLS
    pixels = upsample(random_masks(3, 11), (side, side))
    for k in range(3):
        rng = np.random.default_rng((11, k))
        grid = (rng.random((cells + 2, cells + 2)) < 0.5).astype(float)
        shift = (rng.integers(0, RISE_SHIFTS, size=2) + 0.5) / RISE_SHIFTS
        for y in range(4, side - 4, 13):
            for x in range(4, side - 4, 13):
                v, u = (np.array([y, x]) + 0.5) / side * cells + shift
                i, j = int(v), int(u)
                a, b = v - i, u - j
                direct = (
                    (1 - a) * (1 - b) * grid[i, j]
                    + (1 - a) * b * grid[i, j + 1]
                    + a * (1 - b) * grid[i + 1, j]
                    + a * b * grid[i + 1, j + 1]
                )
                assert pixels[k, y, x] == pytest.approx(direct, abs=1e-5)


def test_random_masks_cover_evenly_and_do_not_depend_on_their_number():
    many = random_masks(1500, 0)
    assert np.abs(many.mean(axis=0) - 0.5).max() < 0.05
    assert many.min() >= 0
    assert many.max() <= 1
    assert (random_masks(20, 0) == many[:20]).all()
    assert not (random_masks(20, 1) == many[:20]).all()
    with pytest.raises(ValueError, match="read-only"):
        many[0] = 0


def test_variant_2_is_vit_cx_with_random_masks(explainer, picture):
    result = explainer.explain(picture, 0, method="random-cx", mask_count=30)
    assert len(result.masks) == 30
    assert result.settings["forward_passes"] == 61
    plain = explainer.explain(picture, 0, method="random-cx", mask_count=30, debias=False)
    rise = explainer.explain(picture, 0, method="rise", mask_count=30)
    np.testing.assert_allclose(plain.saliency, rise.saliency, atol=1e-6)


def test_many_pictures_share_batches_whatever_the_method(explainer, session, picture):
    pictures = [picture, picture[:, ::-1].copy()]
    for settings in ({"method": "rise", "mask_count": 11}, {"method": "occlusion"}):
        session.sizes.clear()
        together = list(explainer.explain_many(pictures, **settings))
        assert sum(size < 16 for size in session.sizes if size > 1) <= 1
        for one, result in zip(pictures, together, strict=True):
            np.testing.assert_allclose(
                explainer.explain(one, **settings).saliency, result.saliency, atol=1e-6
            )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lime"}, "method is 'lime'"),
        ({"method": "rise", "noise_std": 0.2}, "noise_std has no meaning"),
        ({"method": "score-cam", "cluster_masks": "mean"}, "cluster_masks has no meaning"),
        ({"mask_count": 5}, "mask_count has no meaning for the method 'vit-cx'"),
        ({"method": "rise", "mask_count": 0}, "mask_count is 0"),
        ({"method": "rise", "distance_threshold": 0.1}, "distance_threshold has no meaning"),
        ({"method": "occlusion", "window": 29}, "window is 29"),
        ({"method": "occlusion", "window": 4, "step": 5}, "step is 5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(explainer, picture, settings, message):
    with pytest.raises(InputError, match=message):
        explainer.explain(picture, **settings)


def test_the_default_square_is_a_seventh():
    occlusion = occlusion_of(None, None, (224, 288))
    assert (occlusion.window, occlusion.step) == (32, 16)
    assert occlusion_masks(occlusion, (224, 288)).shape == (13 * 17, 224, 288)


@pytest.mark.parametrize(("window", "step"), [(None, None), (5, 3), (1, 1), (32, 32)])
def test_the_size_of_masks_is_known_before_they_are_made(window, step):
    size = (32, 40)
    occlusion = Settings(0.1, method="occlusion", window=window, step=step)
    made = occlusion_masks(occlusion_of(window, step, size), size)
    assert METHODS["occlusion"].mask_bytes(occlusion, size) == made.nbytes
    rise = Settings(0.1, method="rise", mask_count=7)
    assert METHODS["rise"].mask_bytes(rise, size) == random_masks(7, 0).nbytes
    assert METHODS["vit-cx"].mask_bytes(Settings(0.1), size) == 0
