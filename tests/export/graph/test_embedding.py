"""The embedding of every family and layer, against loops over patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.export import tiny
from vitcx.export.graph.arrangement import Windows
from vitcx.export.graph.embedding import WithEmbedding, find_site, site_of_spec
from vitcx.export.sources.timm_models import resize
from vitcx.export.spec import ModelSpec
from vitcx.runtime.errors import InputError

LAYERS = ("norm1", "attn", "block")


def tokens_to_map(tokens: NDArray[Any], prefix: int, grid: tuple[int, int]) -> NDArray[Any]:
    """(B, prefix + h·w, D) to (B,D,h,w), one patch at a time."""
    h, w = grid
    result = np.zeros((len(tokens), tokens.shape[2], h, w), tokens.dtype)
    for y in range(h):
        for x in range(w):
            result[:, :, y, x] = tokens[:, prefix + y * w + x]
    return result


def windows_to_map(
    windows: NDArray[Any],
    grid: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
) -> NDArray[Any]:
    """(B·windows, rows·columns, D) to (B,D,h,w): for each patch, the window it was put into."""
    (h, w), (rows, columns) = grid, window
    down, across = int(np.ceil(h / rows)), int(np.ceil(w / columns))
    batch = len(windows) // (down * across)
    result = np.zeros((batch, windows.shape[2], h, w), windows.dtype)
    for b in range(batch):
        for y in range(h):
            for x in range(w):
                rolled_y, rolled_x = (y - shift[0]) % h, (x - shift[1]) % w
                index = (rolled_y // rows) * across + rolled_x // columns
                token = (rolled_y % rows) * columns + rolled_x % columns
                result[b, :, y, x] = windows[b * down * across + index, token]
    return result


def record(model: nn.Module, path: str, images: torch.Tensor) -> tuple[Any, Any]:
    """Output of the submodule at `path`, and of the model."""
    outputs = []
    hook = model.get_submodule(path).register_forward_hook(lambda m, i, o: outputs.append(o))
    with torch.no_grad():
        logits = model(images)
    hook.remove()
    return outputs[0].numpy(), logits


def embed(model: nn.Module, images: torch.Tensor, **where: Any) -> tuple[Any, Any]:
    """Probabilities and embedding, and a check that the model has no hook afterwards."""
    wrapped = WithEmbedding(model, find_site(model, **where))
    with torch.no_grad():
        probabilities, embedding = wrapped(images)
    wrapped.close()
    wrapped.close()
    assert not any(module._forward_hooks for module in model.modules())
    return probabilities.numpy(), embedding.numpy()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("vit", 1),
        ("deit_distilled", 2),
        ("deit3", 1),
        ("vit_registers", 5),
        ("vit_pooled", 0),
    ],
)
def test_tokens_become_a_map_in_reading_order(family: str, prefix: int, layer: str) -> None:
    model = tiny.make(family)
    patch = model.patch_embed.patch_size[0]
    resize(model, (4 * patch, 6 * patch))  # not square: rows and columns cannot be swapped unseen
    images = torch.randn(2, 3, 4 * patch, 6 * patch)
    path = "blocks.1" if layer == "block" else f"blocks.1.{layer}"
    tokens, logits = record(model, path, images)
    probabilities, embedding = embed(model, images, layer=layer)
    np.testing.assert_array_equal(embedding, tokens_to_map(tokens, prefix, (4, 6)))
    np.testing.assert_allclose(probabilities, torch.softmax(logits, 1).numpy(), rtol=1e-6)


def test_distilled_deit_averages_its_two_heads() -> None:
    model = tiny.make("deit_distilled")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.forward_features(images)
        heads = [model.head(tokens[:, 0]), model.head_dist(tokens[:, 1])]
    assert not np.allclose(heads[0], heads[1])
    probabilities, _ = embed(model, images)
    expected = torch.softmax((heads[0] + heads[1]) / 2, 1)
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2, -3])
@pytest.mark.parametrize("layer", ["norm1", "block"])
def test_swin_maps_are_channels_last_at_any_stage(stage: int, layer: str) -> None:
    model = tiny.make("swin")
    images = torch.randn(2, 3, 64, 64)
    index = stage % 3
    path = f"layers.{index}.blocks.0" + ("" if layer == "block" else f".{layer}")
    features, _ = record(model, path, images)
    _, embedding = embed(model, images, layer=layer, stage=stage, block=0)
    assert embedding.shape == (2, 16 * 2**index, 16 // 2**index, 16 // 2**index)
    for y in range(embedding.shape[2]):
        for x in range(embedding.shape[3]):
            np.testing.assert_array_equal(embedding[:, :, y, x], features[:, y, x])


@pytest.mark.parametrize("block", [0, 1])
def test_swin_attention_windows_are_put_back(block: int) -> None:
    model = tiny.make("swin")
    resize(model, (64, 96))
    images = torch.randn(2, 3, 64, 96)
    module = model.layers[1].blocks[block]
    assert any(module.shift_size) == bool(block)
    assert module.window_size == (5, 5)  # of grids of 8x12: padded in both axes
    windows, _ = record(model, f"layers.1.blocks.{block}.attn", images)
    _, embedding = embed(model, images, layer="attn", stage=1, block=block)
    expected = windows_to_map(windows, (8, 12), module.window_size, module.shift_size)
    np.testing.assert_array_equal(embedding, expected)
    # And timm's own way back, which it does not offer as a module.
    normalised, _ = record(model, f"layers.1.blocks.{block}.norm1", images)
    with torch.no_grad():
        own = module._attn(torch.from_numpy(normalised)).permute(0, 3, 1, 2).numpy()
    np.testing.assert_allclose(embedding, own, atol=1e-6)


@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [((4, 4), (2, 2), (1, 1)), ((5, 7), (3, 2), (1, 0)), ((2, 3), (4, 4), (0, 2))],
)
def test_windows_against_a_loop(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> None:
    count = -(-grid[0] // window[0]) * -(-grid[1] // window[1])
    windows = torch.randn(3 * count, window[0] * window[1], 2)
    got = Windows(grid, window, shift)(windows).numpy()
    np.testing.assert_array_equal(got, windows_to_map(windows.numpy(), grid, window, shift))


def test_default_layers_are_the_papers() -> None:
    vit = find_site(tiny.make("vit"))
    swin = find_site(tiny.make("swin"))
    assert (vit.path, vit.distance_threshold) == ("blocks.1.norm1", 0.1)
    assert (swin.path, swin.distance_threshold) == ("layers.1.blocks.1.norm1", 0.05)


class Custom(nn.Module):
    """Channels-first features of patches, then logits; `repeat` runs the features twice."""

    def __init__(self, repeat: bool = False) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 5, 8, 8)
        self.head = nn.Linear(5, 4)
        self.repeat = repeat

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.features(images)
        if self.repeat:
            features = features + self.features(images)
        logits: torch.Tensor = self.head(features.mean((2, 3)))
        return logits


def test_a_spec_names_any_submodule() -> None:
    model = Custom().eval()
    images = torch.randn(2, 3, 16, 24)
    for layout, axes in (("BDHW", (0, 1, 2, 3)), ("BHWD", (0, 3, 1, 2))):
        spec = ModelSpec("features", (16, 24), token_layout=layout)
        wrapped = WithEmbedding(model, site_of_spec(model, spec))
        with torch.no_grad():
            _, embedding = wrapped(images)
            expected = model.features(images).permute(axes)
        wrapped.close()
        np.testing.assert_array_equal(embedding, expected)


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        (Custom(), ModelSpec("nowhere", grid=(2, 2)), "no submodule 'nowhere'"),
        (Custom(), ModelSpec("features", grid=(2, 2)), r"expected \(B, tokens, D\)"),
        (Custom(), ModelSpec("head", token_layout="BDHW"), r"expected \(B, D, h, w\)"),
        (Custom(), ModelSpec("head", token_layout="BHWD"), r"expected \(B, h, w, D\)"),
        (Custom(True), ModelSpec("features", token_layout="BDHW"), "ran 2 times"),
        (
            nn.Sequential(nn.Conv2d(3, 2, 8)),
            ModelSpec("0", token_layout="BDHW"),
            r"expected logits \(B, C\)",
        ),
    ],
)
def test_a_spec_that_does_not_fit(model: nn.Module, spec: ModelSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WithEmbedding(model, site_of_spec(model, spec))(torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("family", "where", "message"),
    [
        ("vit", {"block": 2}, "block is 2, expected one of -2 to 1"),
        ("vit", {"stage": 0}, "no stages"),
        ("swin", {"stage": 3}, "stage is 3, expected one of -3 to 2"),
        ("swin", {"stage": 0, "block": 1}, "block is 1, expected one of -1 to 0"),
    ],
)
def test_an_index_out_of_range(family: str, where: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_site(tiny.make(family), **where)


def test_models_without_attention_or_a_grid() -> None:
    with pytest.raises(InputError, match="no attention was seen in Sequential"):
        find_site(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model = tiny.make("vit")
    model.global_pool = ""  # so that its one result is tokens
    site = find_site(model)
    with pytest.raises(InputError, match=r"gives \(2, 17, 7\), expected logits \(B, C\)"):
        WithEmbedding(model, site)(torch.zeros(2, 3, 64, 64))


def test_a_grid_that_is_not_the_one_of_the_tokens_is_found_out() -> None:
    model = tiny.make("vit")
    model.patch_embed.grid_size = (3, 4)
    site = find_site(model)
    assert site.path == "blocks.1.norm1"
    wrapped = WithEmbedding(model, site)
    assert wrapped(torch.zeros(2, 3, 64, 64))[1].shape == (2, 24, 4, 4)
    wrapped.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token_layout": "DBN"}, "token_layout"),
        ({"crop_mode": "border"}, "crop_mode"),
        ({"interpolation": "magic", "grid": (1, 1)}, "interpolation"),
        ({}, "give grid"),
        ({"token_layout": "BHWD", "prefix_tokens": 1}, "no tokens to drop"),
        ({"grid": (0, 1)}, "must be positive"),
        ({"grid": (1, 1), "input_size": (0, 4)}, "must be positive"),
    ],
)
def test_a_spec_says_what_is_wrong_with_it(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelSpec("layer", **values)
