"""Weights from files: formats, wrappers, keys and shapes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.export import tiny
from vitcx.export.sources.checkpoints import head_classes, load_strictly, read_checkpoint
from vitcx.runtime.errors import InputError


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(2, 3), "a.bias": torch.randn(2)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    assert_same(read_checkpoint(path), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": s, "lr": 0.1},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {**s, "epoch": 3},
    ],
)
def test_wrappers_and_prefixes(wrap: Any, tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(2, 3), "module.bias": torch.randn(2)}
    torch.save(wrap(state), tmp_path / "weights.pth")
    assert_same(read_checkpoint(tmp_path / "weights.pth"), state)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "missing.pth")
    for name, message in (
        ("a.pth", "cannot read"),
        ("a.safetensors", "not a safetensors file"),
        ("a.h5", r"suffix '\.h5', expected \.safetensors, \.pth"),
    ):
        (tmp_path / name).write_bytes(b"\x80nonsense")
        with pytest.raises(InputError, match=message):
            read_checkpoint(tmp_path / name)
    for content in ([1, 2], {"epoch": 3}, {}):
        torch.save(content, tmp_path / "b.pth")
        with pytest.raises(InputError, match="without tensors, expected a state dict"):
            read_checkpoint(tmp_path / "b.pth")


def test_no_code_is_run(tmp_path: Path) -> None:
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"no other content is run.*torch\.save"):
        read_checkpoint(tmp_path / "a.pth")


def test_keys_must_match() -> None:
    model = tiny.make("vit")
    state = state_of(model)
    for key in [k for k in state if k.startswith("blocks.1.")]:
        state[f"other.{key}"] = state.pop(key)
    with pytest.raises(InputError) as caught:
        load_strictly(model, state, "weights.pth")
    assert str(caught.value).startswith(
        "'weights.pth' does not fit VisionTransformer: missing blocks.1.norm1.weight, "
        "blocks.1.norm1.bias, blocks.1.attn.qkv.weight and 9 more; unexpected "
    )
    assert "is MODEL the name of the architecture" in str(caught.value)


def test_shapes_must_match() -> None:
    model = tiny.make("vit")
    state = state_of(tiny.make("vit", num_classes=3, img_size=96))
    message = (
        r"pos_embed is \(1, 37, 24\), expected \(1, 17, 24\), head\.weight is \(3, 24\), expected "
        r"\(7, 24\), head\.bias is .*check MODEL, --num-classes and --img-size"
    )
    before = state_of(model)
    with pytest.raises(InputError, match=message):
        load_strictly(model, state, "weights.pth")
    assert_same(state_of(model), before)


def test_the_authors_keys_of_swin_are_converted() -> None:
    """The authors' files merge a stage earlier, and hold a flat head and buffers."""
    model, target = tiny.make("swin"), tiny.make("swin")
    own = state_of(model)
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    published = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(25, 25)}
    for key, value in own.items():
        name = key.replace("head.fc.", "head.")
        for stage in (1, 2):
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        published[name] = value
    assert published.keys() != own.keys()
    assert head_classes(target, published) == tiny.CLASSES
    load_strictly(target, published, "swin.pth")
    assert_same(state_of(target), own)


@pytest.mark.parametrize("family", ["vit", "deit_distilled", "deit3", "swin"])
def test_classes_of_the_head(family: str) -> None:
    assert head_classes(tiny.make(family), state_of(tiny.make(family, num_classes=5))) == 5
    assert head_classes(tiny.make(family), {"other": torch.zeros(3)}) is None
