"""What the methods' papers state of them, on a small random ViT."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from benchmarks.methods import NotApplicable, attention, method, relevance  # noqa: E402
from vitcx.export.timm_import import import_timm  # noqa: E402
from vitcx.kernels.host.upsampling import upsample  # noqa: E402
from vitcx.runtime.errors import InputError  # noqa: E402


def test_rollout_rows_sum_to_1(vit, image):
    with attention.attention_maps(vit) as maps, torch.no_grad():
        fused = vit(torch.from_numpy(image)[None])
    assert len(maps) == 5
    rows = attention.rollout_matrix(maps).sum(dim=1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    with torch.no_grad():
        torch.testing.assert_close(vit(torch.from_numpy(image)[None]), fused)
    assert all(not block.attn.attn_drop._forward_hooks for block in vit.blocks)


def test_relevance_is_conserved_from_the_logit_to_the_first_block(vit, image):
    found = relevance.propagate(vit, image, 3)
    for tokens in found.tokens:
        assert float(tokens.sum()) == pytest.approx(1, abs=1e-6)


def test_relevance_of_a_distilled_deit_is_conserved_over_both_its_heads(image):
    timm = import_timm()
    torch.manual_seed(0)
    deit = timm.models.deit.VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=7
    ).eval()
    for tokens in relevance.propagate(deit, image, 3).tokens:
        assert float(tokens.sum()) == pytest.approx(1, abs=1e-6)
    for explain in (relevance.cgw1, relevance.partial_lrp, attention.cgw2):
        assert explain(deit, image, 2).shape == (32, 32)
    # A head that says nothing of the class leaves all the relevance to the other.
    both = relevance.partial_lrp(deit, image, 3)
    with torch.no_grad():
        deit.head_dist.weight[3] = 0
        deit.head_dist.bias[3] = 0
    assert np.abs(relevance.partial_lrp(deit, image, 3) - both).max() > 0
    for tokens in relevance.propagate(deit, image, 3).tokens:
        assert float(tokens.sum()) == pytest.approx(1, abs=1e-6)


def test_lrp_rules_against_loops():
    rng = torch.Generator().manual_seed(1)
    x, weight = torch.randn(2, 4, generator=rng), torch.randn(3, 4, generator=rng)
    given = torch.rand(2, 3, generator=rng)
    expected = torch.zeros(2, 4)
    for n in range(2):
        for i in range(3):
            parts = (x[n] * weight[i]).clamp(min=0)
            expected[n] += parts / parts.sum().clamp(min=1e-12) * given[n, i]
    torch.testing.assert_close(relevance.linear_rule(x, weight, given), expected)
    a, b = torch.rand(3, 2, generator=rng), torch.rand(2, 4, generator=rng)
    one, two = relevance.product_rule(a, b, torch.full((3, 4), 0.5))
    assert float(one.sum()) == pytest.approx(3)
    assert float(two.sum()) == pytest.approx(3)
    one, two = relevance.sum_rule(torch.rand(3), -torch.rand(3) / 2, torch.rand(3))
    assert one.shape == two.shape


@pytest.mark.parametrize("name", ["cgw2", "tam"])
def test_class_specific_methods_differ_between_classes(vit, image, name):
    explain = getattr(attention, name)
    maps = [explain(vit, image, target) for target in (0, 5)]
    assert maps[0].shape == (32, 32)
    assert np.isfinite(maps).all()
    assert np.abs(maps[0] - maps[1]).max() > 0


def test_cgw1_and_partial_lrp_give_maps(vit, image):
    for explain in (relevance.cgw1, relevance.partial_lrp, attention.rollout):
        found = explain(vit, image, 2)
        assert found.shape == (32, 32)
        assert np.isfinite(found).all()
        assert found.max() > found.min()


@pytest.mark.parametrize(
    ("name", "passes"), [("Rollout", 1), ("CGW2", 2), ("TAM", 41), ("Grad-CAM", 2), ("CGW1", 4)]
)
def test_the_price_of_a_method_is_its_passes_there_and_back(vit, image, name, passes):
    model = SimpleNamespace(module=vit)
    saliency, facts = method(name)(model, image, 2)
    assert saliency.shape == (32, 32)
    assert facts == {"passes": passes}
    assert not vit._forward_hooks


def test_a_method_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(InputError, match="no method or preset 'LIME'"):
        method("LIME")


def test_models_without_a_class_token_are_not_applicable(image):
    with pytest.raises(NotApplicable, match="CLS"):
        attention.rollout(torch.nn.Linear(1, 1), image, 0)
    with pytest.raises(NotApplicable):
        relevance.partial_lrp(torch.nn.Linear(1, 1), image, 0)


@pytest.mark.filterwarnings("ignore")
def test_integrated_gradients_are_complete(vit, image):
    pytest.importorskip("captum")
    from benchmarks.methods import gradients

    found, gap = gradients.integrated_attribution(vit, image, 3, steps=100)
    with torch.no_grad():
        ends = torch.stack([torch.from_numpy(image), torch.zeros(3, 32, 32)])
        high, low = vit(ends).softmax(dim=1)[:, 3]
    assert float(found.sum()) == pytest.approx(float(high - low), abs=2e-3)
    assert abs(gap) < 2e-3
    assert gradients.smooth_grad(vit, image, 3).shape == (32, 32)


def test_grad_cam_is_its_formula(vit, image):
    """By finite differences of the logit, where the method takes gradients."""
    from benchmarks.methods import gradients

    found = gradients.grad_cam(vit, image, 3)
    exact, shift = copy.deepcopy(vit).double(), torch.zeros(24, dtype=torch.float64)
    kept = []

    def add(_module, _inputs, out):
        kept.append(out)
        return torch.cat([out[:, :1], out[:, 1:] + shift], dim=1)

    exact.blocks[-1].norm1.register_forward_hook(add)

    def logit():
        with torch.no_grad():
            return float(exact(torch.from_numpy(image).double()[None])[0, 3])

    weights = np.empty(24)
    for channel in range(24):
        ends = []
        for step in (1e-4, -1e-4):
            shift[channel] = step
            ends.append(logit())
            shift[channel] = 0
        # Each of the 16 patches was shifted: that is 16 times the mean slope.
        weights[channel] = (ends[0] - ends[1]) / 2e-4 / 16
    low = np.maximum(kept[0][0, 1:].numpy() @ weights, 0).reshape(4, 4).astype(np.float32)
    np.testing.assert_allclose(found, upsample(low, (32, 32)), atol=1e-6)
