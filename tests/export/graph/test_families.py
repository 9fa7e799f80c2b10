"""Families of timm's, each small and random: where their patch embedding is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vitcx.export.graph.embedding import find_site
from vitcx.export.graph.layout import Probe
from vitcx.export.timm_import import import_timm
from vitcx.runtime.errors import InputError

_SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2, "img_size": 64}
_STAGES = {"depths": (1, 1, 2), "num_heads": (1, 2, 2), "embed_dim": 16}
# Name, arguments, side of the picture, layer, path, prefix tokens or None for maps, grid.
FAMILIES: list[tuple[str, dict[str, Any], int, str, str, int | None]] = [
    ("beit_base_patch16_224", _SMALL, 64, "norm1", "blocks.1.norm1", 1),
    ("vit_small_patch16_dinov3", _SMALL, 64, "norm1", "blocks.1.norm1", 5),
    ("vit_relpos_small_patch16_224", _SMALL, 64, "norm1", "blocks.1.norm1", 0),
    # Parallel blocks: one with a shared normalisation, one with several attentions.
    ("vit_base_patch16_xp_224", _SMALL, 64, "block", "blocks.1", 1),
    ("vit_small_patch16_18x2_224", _SMALL, 64, "norm1", "blocks.1.attns.1.norm", 1),
    # Class attention at the end: its tokens have no prefix before that.
    ("cait_xxs24_224", {"depth": 2, "img_size": 64}, 64, "norm1", "blocks.1.norm1", 0),
    ("xcit_nano_12_p16_224", {"depth": 2, "img_size": 96}, 96, "norm1", "blocks.1.norm1", 0),
    ("samvit_base_patch16_224", _SMALL, 64, "norm1", "blocks.1.norm1", None),
    # Normalised after the attention.
    (
        "swinv2_tiny_window8_256",
        {**_STAGES, "img_size": 64, "window_size": 4},
        64,
        "block",
        "layers.2.blocks.1",
        None,
    ),
    (
        "swinv2_cr_tiny_ns_224",
        {**_STAGES, "img_size": 112},
        112,
        "block",
        "stages.2.blocks.1",
        None,
    ),
]
_MORE: list[tuple[str, dict[str, Any], int, str, str, int | None]] = [
    ("pvt_v2_b0", {}, 96, "norm1", "stages.2.blocks.1.norm1", 0),
    ("coat_lite_tiny", {"img_size": 96}, 96, "norm1", "serial_blocks3.1.norm1", 1),
    ("edgenext_xx_small", {}, 128, "norm1", "stages.2.blocks.5.norm_xca", 0),
    ("efficientvit_b0", {}, 96, "block", "stages.2.blocks.2", None),
    ("swiftformer_xs", {}, 96, "block", "stages.2.blocks.5", None),
    ("levit_128s", {"img_size": 96}, 96, "block", "stages.0.blocks.1", 0),
    ("pit_ti_224", {"img_size": 96}, 96, "norm1", "transformers.1.blocks.5.norm1", 1),
    ("visformer_tiny", {"img_size": 96}, 96, "norm1", "stage2.3.norm1", None),
    ("davit_tiny", {"depths": (1, 1, 2, 1)}, 112, "norm1", "stages.2.blocks.1.1.norm1", 0),
    (
        "maxvit_pico_rw_256",
        {"img_size": 64},
        64,
        "norm1",
        "stages.2.blocks.4.attn_grid.norm1",
        None,
    ),
    ("coatnet_pico_rw_224", {"img_size": 64}, 64, "norm1", "stages.2.blocks.4.norm1", None),
    ("crossvit_9_240", {}, 240, "norm1", "blocks.2.blocks.1.2.norm1", 1),
    ("efficientformer_l1", {}, 224, "norm1", "stages.3.blocks.4.norm1", 0),
]


def make(name: str, arguments: dict[str, Any], probe: Probe) -> nn.Module:
    """A random model whose batch normalisations have seen pictures, as trained ones have."""
    torch.manual_seed(0)
    model: nn.Module = import_timm().create_model(name, **arguments).eval()
    seen = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for module in seen:
        module.momentum = None
        module.reset_running_stats()
        module.train()
    if seen:
        size = probe.images.shape[1:]
        with torch.no_grad():
            model(torch.cat([torch.randn(2, *size), probe.images.roll((37, 81), (2, 3))[:4]]))
    return model.eval()


def check(
    name: str, arguments: dict[str, Any], side: int, layer: str, path: str, prefix: int | None
) -> None:
    probe = Probe.of((side, side), 3)
    site = find_site(make(name, arguments, probe), probe=probe)
    assert (site.layer, site.path) == (layer, path)
    assert getattr(site.arrange, "prefix", None) == prefix


@pytest.mark.parametrize(("name", "arguments", "side", "layer", "path", "prefix"), FAMILIES)
def test_where_a_family_has_its_embedding(
    name: str, arguments: dict[str, Any], side: int, layer: str, path: str, prefix: int | None
) -> None:
    check(name, arguments, side, layer, path, prefix)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments", "side", "layer", "path", "prefix"), _MORE)
def test_where_a_larger_family_has_its_embedding(
    name: str, arguments: dict[str, Any], side: int, layer: str, path: str, prefix: int | None
) -> None:
    check(name, arguments, side, layer, path, prefix)


def test_networks_without_attention_are_refused() -> None:
    timm = import_timm()
    # Built as a Swin is, and laid out otherwise: once it was taken for one.
    focal = timm.models.focalnet.FocalNet(depths=(1, 1, 1), embed_dim=16).eval()
    for model in (focal, timm.create_model("resnet10t").eval()):
        with pytest.raises(InputError, match="no attention was seen in"):
            find_site(model, probe=Probe.of((64, 64), 3))


def test_a_post_norm_is_no_input_normalisation() -> None:
    name, arguments, side, *_ = FAMILIES[-2]
    probe = Probe.of((side, side), 3)
    with pytest.raises(InputError, match=r"no normalisation before its attention.*--layer block"):
        find_site(make(name, arguments, probe), "norm1", probe=probe)
