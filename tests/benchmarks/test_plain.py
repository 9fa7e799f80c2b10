"""The PyTorch baselines give the maps that ours give, noise off."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from benchmarks import plain  # noqa: E402
from vitcx.runtime.errors import InputError  # noqa: E402
from vitcx.runtime.method.aggregation import aggregate  # noqa: E402
from vitcx.runtime.method.clustering import cluster  # noqa: E402
from vitcx.runtime.method.masks import cosine_distances, merge_masks, vit_masks  # noqa: E402


def test_baselines_agree_with_each_other_and_with_low_resolution_masks(vit, image):
    one = plain.loop(vit, image, 2, threshold=0.2, noise_std=0.0)
    two = plain.batched(vit, image, 2, threshold=0.2, noise_std=0.0, batch=6)
    np.testing.assert_allclose(one, two, atol=1e-5)
    with torch.no_grad():
        _, embedding = plain.embedding_of(vit, torch.from_numpy(image))
    low = vit_masks(embedding[0].numpy(), (32, 32))
    low = merge_masks(low, cluster(cosine_distances(low, (32, 32)), 0.2), (32, 32), "renormalised")
    pixel = plain.pixel_masks(embedding, (32, 32), 0.2)
    assert len(pixel) == len(low)
    from vitcx.kernels.host.upsampling import upsample

    rows = torch.from_numpy(image * upsample(low, (32, 32))[:, None])
    with torch.no_grad():
        impacts = vit(rows).softmax(dim=1)[:, 2].numpy()
    ours, _ = aggregate(low, impacts[None], (32, 32), correct_coverage=True)
    np.testing.assert_allclose(one, ours[0], atol=1e-4)


def test_a_compiled_model_is_called_and_not_asked_for_its_length(vit, image):
    compiled = torch.compile(vit, backend="eager")
    settings = {"threshold": 0.2, "noise_std": 0.0}
    found = plain.batched(vit, image, 2, forward=compiled, **settings)
    np.testing.assert_allclose(found, plain.batched(vit, image, 2, **settings), atol=1e-6)


def test_a_model_with_16_bit_weights_gives_nearly_the_same_map(vit, image):
    """As on a GPU, where that is the fast way; bfloat16 keeps 8 bits."""
    full = plain.batched(vit, image, 2, threshold=0.2, noise_std=0.0)
    small = copy.deepcopy(vit).to(torch.bfloat16)
    found = plain.batched(small, image, 2, threshold=0.2, noise_std=0.0)
    assert found.dtype == np.float32
    assert np.corrcoef(found.ravel(), full.ravel())[0, 1] > 0.9


def test_the_place_of_the_authors_code_is_checked():
    pytest.importorskip("sklearn")
    from benchmarks.authors import load_authors

    with pytest.raises(InputError, match=r"FILE\.py:FUNCTION"):
        load_authors("nowhere")
