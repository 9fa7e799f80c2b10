"""Our definitions against a kept library's, on the same arrays."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vitcx.evaluation.boxes import pointing_hit  # noqa: E402
from vitcx.evaluation.curves import Question, score_curves  # noqa: E402
from vitcx.evaluation.imputation import NOISE_STD, impute  # noqa: E402
from vitcx.evaluation.metrics import sparseness  # noqa: E402
from vitcx.export.timm_import import import_timm  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture(scope="module")
def quantus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_timm()  # quantus imports torchvision, which may need timm's remedy
        except ModuleNotFoundError:
            pytest.skip("timm is not installed")
        # Where the machine has no libGL, OpenCV, which quantus imports, raises a plain ImportError.
        return pytest.importorskip("quantus", exc_type=ImportError)


class Linear(torch.nn.Module):
    """Probabilities of the session's linear scores."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.from_numpy(weights))

    def forward(self, images):
        return torch.softmax(images.flatten(1) @ self.weights.T, dim=1)


def test_the_deletion_curve_is_pixel_flipping(quantus, session, picture):
    saliency = np.random.default_rng(0).random((28, 28)).astype(np.float32)
    (ours,) = score_curves(session, [Question(picture, saliency, 1)], steps=14)
    metric = quantus.PixelFlipping(
        features_in_step=28 * 28 // 14,
        perturb_baseline=0.0,
        abs=False,
        normalise=False,
        disable_warnings=True,
    )
    (theirs,) = metric(
        model=Linear(session.weights).eval(),
        x_batch=picture[None],
        y_batch=np.array([1]),
        a_batch=saliency[None, None],
        softmax=False,
        channel_first=True,
    )
    # The library flips a colour at a time, and the three of a pixel have the same saliency.
    np.testing.assert_allclose(ours.deletion[1:], theirs[2::3], atol=1e-6)


def test_sparseness_is_the_gini_index(quantus, session, picture):
    heat = np.random.default_rng(4).random((28, 28)).astype(np.float32)
    heat = (heat - heat.min()) / np.ptp(heat)
    metric = quantus.Sparseness(abs=True, normalise=False, disable_warnings=True)
    (theirs,) = metric(
        model=Linear(session.weights).eval(),
        x_batch=picture[None],
        y_batch=np.array([1]),
        a_batch=heat[None, None],
        channel_first=True,
    )
    assert sparseness(heat) == pytest.approx(float(theirs), abs=1e-5)


def test_the_imputation_is_that_of_road(quantus):
    from quantus.functions.perturb_func import noisy_linear_imputation

    rng = np.random.default_rng(3)
    picture = rng.normal(size=(3, 17, 23)).astype(np.float32)
    for share in (0.1, 0.5, 0.95):
        hidden = rng.random((17, 23)) < share
        theirs = noisy_linear_imputation(picture, np.flatnonzero(hidden), noise=0.0)
        ours = impute(picture, hidden)
        noise = (ours - theirs)[:, hidden]
        assert np.abs(noise).max() < 5 * NOISE_STD
        assert noise.size < 50 or 0.5 * NOISE_STD < noise.std() < 1.5 * NOISE_STD


@pytest.mark.parametrize("inside", [True, False])
def test_pointing_is_the_pointing_game(quantus, session, picture, inside):
    truth = np.zeros((28, 28), dtype=bool)
    truth[4:12, 6:20] = True
    saliency = np.random.default_rng(2).random((28, 28)).astype(np.float32)
    saliency[(5, 7) if inside else (20, 25)] = 2
    metric = quantus.PointingGame(abs=False, normalise=False, disable_warnings=True)
    (theirs,) = metric(
        model=Linear(session.weights).eval(),
        x_batch=picture[None],
        y_batch=np.array([1]),
        a_batch=saliency[None, None],
        s_batch=truth[None, None],
        channel_first=True,
    )
    assert bool(theirs) is pointing_hit(saliency, truth) is inside
