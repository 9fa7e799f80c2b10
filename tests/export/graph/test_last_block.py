"""The graph leaves out what no answer depends on, and nothing else."""

import pytest
import torch
from torch import nn

from tests.export import tiny
from vitcx.export.graph.embedding import Site, WithEmbedding, find_site
from vitcx.export.graph.last_block import _last_block, prefix_tokens_only

# The same sums, some in another order; the values are of order 1.
SUMS_ATOL = 1e-5


@pytest.mark.parametrize(
    ("family", "layer", "block", "applies"),
    [
        ("vit", "norm1", -1, True),
        ("vit", "block", 0, True),
        ("vit_registers", "norm1", -1, True),
        ("deit3", "norm1", -1, True),
        ("deit_distilled", "norm1", -1, True),
        ("vit", "attn", -1, False),
        ("vit", "block", -1, False),
        ("swin", "norm1", -1, False),
    ],
)
def test_outputs_stay_and_the_model_is_put_back(family, layer, block, applies):
    model = tiny.make(family)
    site = find_site(model, layer, block=block)
    wrapped = WithEmbedding(model, site)
    images = torch.randn(3, 3, *([56, 56] if family == "vit_registers" else [64, 64]))
    last = [m for m in model.modules() if type(m).__name__ == "Block"][-1:]
    seen = []
    for found in last:
        found.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1]))
    with torch.no_grad():
        expected = wrapped(images)
        seen.clear()
        with prefix_tokens_only(model, site.path, wrapped, images) as applied:
            seen.clear()  # of the comparison before it is done
            found = wrapped(images)
        again = wrapped(images)
    wrapped.close()
    assert applied is applies
    for one, two, three in zip(expected, found, again, strict=True):
        torch.testing.assert_close(two, one, atol=SUMS_ATOL, rtol=0)
        assert torch.equal(three, one)
    if seen:
        prefix = model.num_prefix_tokens
        assert seen[1] > prefix
        assert seen == [prefix if applies else seen[1], seen[1]]


def applies(model, path="blocks.1.norm1"):
    wrapped = WithEmbedding(model, Site(path, lambda x: x, 0.1, "norm1"))
    with prefix_tokens_only(model, path, wrapped, torch.randn(3, 3, 64, 64)) as applied:
        pass
    wrapped.close()
    assert "forward" not in vars(model.blocks[-1])
    return applied


def test_a_site_that_is_no_block_leaves_the_model_alone():
    model = tiny.make("vit")
    assert applies(model)
    assert not applies(model, "norm")


@pytest.mark.parametrize("change", ["pooling", "attention", "subclass"])
def test_a_model_that_may_read_its_patches_is_left_alone(change):
    model = tiny.make("vit")
    if change == "pooling":
        model.global_pool = "avg"
    elif change == "attention":
        model.blocks[-1].attn.gate = nn.Linear(2, 2)
    else:
        model.__class__ = type("Other", (type(model),), {})
    assert not applies(model)


class Adapter(nn.Module):
    """A low-rank change beside a layer, as LoRA leaves it until it is merged."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Quantised(nn.Module):
    """A layer whose weight is a method, as that of torch's quantised ones is."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def weight(self):
        return self.base.weight

    def forward(self, x):
        return self.base(x)


@pytest.mark.parametrize("change", ["adapter", "hook", "scaled", "quantised", "no attention"])
def test_a_block_that_is_not_as_timm_wrote_it_is_left_whole(change):
    model = tiny.make("vit")
    attention = model.blocks[-1].attn
    if change == "adapter":
        attention.qkv = Adapter(attention.qkv)
    elif change == "hook":
        attention.register_forward_hook(lambda m, i, out: out * 2)
    elif change == "scaled":  # what timm's attention does not say of itself
        attention.scale, attention.fused_attn = 0.01, False
    elif change == "quantised":
        attention.qkv = Quantised(attention.qkv)
    else:
        model.blocks[-1].attn = None
        model.blocks[-1].forward = lambda x, **nothing: model.blocks[-1].norm1(x)
    if change != "no attention":
        assert not applies(model)
    else:
        assert _last_block(model, "blocks.1.norm1") is None
