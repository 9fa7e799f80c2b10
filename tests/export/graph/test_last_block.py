"""The graph leaves out what no answer depends on, and nothing else."""

import pytest
import torch
from torch import nn

from tests.export import tiny
from vitcx.export.graph.embedding import WithEmbedding, find_site
from vitcx.export.graph.last_block import prefix_tokens_only

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
        with prefix_tokens_only(model, site.path) as applied:
            found = wrapped(images)
        again = wrapped(images)
    wrapped.close()
    assert applied is applies
    for one, two, three in zip(expected, found, again, strict=True):
        torch.testing.assert_close(two, one, atol=SUMS_ATOL, rtol=0)
        assert torch.equal(three, one)
    if seen:
        prefix = model.num_prefix_tokens
        assert seen == [seen[0], prefix if applies else seen[0], seen[0]]
        assert seen[0] > prefix


def test_a_site_that_is_no_block_leaves_the_model_alone():
    model = tiny.make("vit")
    with prefix_tokens_only(model, "norm") as applied:
        assert not applied


@pytest.mark.parametrize("change", ["pooling", "attention", "subclass"])
def test_a_model_that_may_read_its_patches_is_left_alone(change):
    model = tiny.make("vit")
    if change == "pooling":
        model.global_pool = "avg"
    elif change == "attention":
        model.blocks[-1].attn.gate = nn.Linear(2, 2)
    else:
        model.__class__ = type("Other", (type(model),), {})
    with prefix_tokens_only(model, "blocks.1.norm1") as applied:
        assert not applied
        assert "forward" not in vars(model.blocks[-1])
