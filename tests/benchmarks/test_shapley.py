"""What the ViT Shapley paper states, on games small enough to know the answer."""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("safetensors")

from benchmarks.methods import shapley  # noqa: E402
from benchmarks.models import embedded_module  # noqa: E402
from vitcx.evaluation.subjects import scene_subjects  # noqa: E402
from vitcx.runtime.explainer import load  # noqa: E402

PLAYERS = 5


@pytest.fixture(scope="module")
def demo():
    with load("demo") as explainer:
        subject = next(scene_subjects(explainer.manifest, 1))
        yield explainer, embedded_module(explainer.bundle.model_path), subject


def exact_values(worth):
    """Shapley values by their definition: the mean of a player's gain over all orders."""
    values = np.zeros(PLAYERS)
    for order in itertools.permutations(range(PLAYERS)):
        before = 0
        for player in order:
            values[player] += worth[before | 1 << player] - worth[before]
            before |= 1 << player
    return values / math.factorial(PLAYERS)


def test_the_losses_minimiser_is_the_shapley_values():
    worth = np.random.default_rng(0).normal(size=2**PLAYERS)
    subsets = list(range(1, 2**PLAYERS - 1))
    members = np.array([[s >> i & 1 for i in range(PLAYERS)] for s in subsets], dtype=float)
    sizes = members.sum(axis=1).astype(int)
    kernel = shapley.shapley_kernel(PLAYERS)
    chance = np.array([kernel[n - 1] / math.comb(PLAYERS, n) for n in sizes], dtype=float)
    # The mean over draws from the kernel, exactly: each coalition scaled by the root of its chance.
    root = torch.from_numpy(np.sqrt(chance * len(subsets)))[None, :, None]
    gains = torch.from_numpy(worth[subsets] - worth[0])[None, :, None]
    gap = torch.tensor([[worth[-1] - worth[0]]])
    raw = torch.zeros(1, PLAYERS, 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([raw], max_iter=100, tolerance_grad=1e-12, tolerance_change=0)

    def loss():
        optimiser.zero_grad()
        found = shapley.shapley_loss(
            shapley.efficient(raw, gap), torch.from_numpy(members)[None] * root, gains * root
        )
        found.backward()
        return found

    optimiser.step(loss)
    found = shapley.efficient(raw, gap)[0, :, 0].detach().numpy()
    np.testing.assert_allclose(found, exact_values(worth), atol=1e-6)


def test_coalitions_come_with_their_complements_and_in_the_kernels_sizes():
    drawn = shapley.coalitions(6, 4000, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn[::2] + drawn[1::2], 1)
    shares = np.bincount(drawn.sum(axis=1).astype(int), minlength=7)[1:6] / len(drawn)
    # 8,000 draws: the standard error of a share is below 0.006.
    np.testing.assert_allclose(shares, shapley.shapley_kernel(6), atol=0.025)


def test_attributions_add_up_to_what_the_picture_is_worth(demo):
    _, classifier, subject = demo
    torch.manual_seed(0)
    images = torch.from_numpy(subject.pixels)[None]
    with torch.no_grad():
        found = shapley.attributions(shapley.ShapleyViT(classifier).eval(), classifier, images)
        ends = torch.cat([images, torch.zeros_like(images)])
        high, low = classifier(ends).softmax(dim=1)
    torch.testing.assert_close(found[0].sum(dim=0), high - low, atol=1e-5, rtol=0)


def test_a_coalition_keeps_its_patches_and_zeroes_the_others():
    image = torch.arange(3 * 4 * 4, dtype=torch.float32).reshape(3, 4, 4) + 1
    members = torch.tensor([[1.0, 0, 0, 1]])
    (kept,) = shapley.keep_patches(image, members, (2, 2))
    torch.testing.assert_close(kept[:, :2, :2], image[:, :2, :2])
    torch.testing.assert_close(kept[:, 2:, 2:], image[:, 2:, 2:])
    assert not kept[:, :2, 2:].any()
    assert not kept[:, 2:, :2].any()


def test_training_explains_more_than_equal_shares_do(demo):
    explainer, classifier, subject = demo
    # Whether loss, normalisation and steps work, not how well: the same seed draws the coalitions
    # that were learned by heart.
    images = torch.from_numpy(subject.pixels)[None]
    learned = shapley.train(classifier, images, pairs=8, epochs=40, batch=1)
    share = shapley.explained_share(learned, classifier, images, 8, np.random.default_rng(0))
    assert share > 0.1
    found = shapley.shapley_map(learned, classifier, subject.pixels, subject.target)
    assert found.shape == explainer.manifest.input_size


def test_the_embedded_model_read_back_answers_as_its_engine_does(demo):
    explainer, classifier, subject = demo
    with torch.no_grad():
        found = classifier(torch.from_numpy(subject.pixels)[None]).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, explainer.session.predict(subject.pixels[None]), atol=1e-5)
