"""Weights from files: formats, wrappers, keys and shapes."""

from __future__ import annotations

import argparse
import fractions
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.export import tiny
from vitcx.export.sources.checkpoint_files import read_checkpoint
from vitcx.export.sources.checkpoints import head_classes, load_strictly, match_keys
from vitcx.export.timm_import import import_timm
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
    assert_same(read_checkpoint(path).state, state)


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
    assert_same(read_checkpoint(tmp_path / "weights.pth").state, state)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "missing.pth")
    for name, message in (
        ("a.pth", "cannot read"),
        ("a.safetensors", "not a safetensors file"),
        ("a.h5", r"'a.h5' is neither safetensors .* nor a file of torch\.save"),
    ):
        (tmp_path / name).write_bytes(b"HDF" if name == "a.h5" else b"\x80nonsense")
        with pytest.raises(InputError, match=message):
            read_checkpoint(tmp_path / name)
    for content in ([1, 2], {"epoch": 3}, {}):
        torch.save(content, tmp_path / "b.pth")
        with pytest.raises(InputError, match="without tensors, expected a state dict"):
            read_checkpoint(tmp_path / "b.pth")


def test_no_code_is_run(tmp_path: Path) -> None:
    torch.save({"model": {}, "best": fractions.Fraction(1, 2)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"\(fractions\.Fraction\), and reading such an object"):
        read_checkpoint(tmp_path / "a.pth")
    torch.save(tiny.make("vit"), tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"timm\..*save its weights alone"):
        read_checkpoint(tmp_path / "b.pth")


STATE = {"a.weight": torch.randn(2, 3), "a.bias": torch.randn(2)}
ZERO = {key: value * 0 for key, value in STATE.items()}
AVERAGED = {f"module.{key}": value for key, value in STATE.items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lightning.ckpt", {"state_dict": STATE, "epoch": 3}),
        ("model_best.pth.tar", {"state_dict": STATE, "epoch": 3}),
        ("timm.pth", {"state_dict": STATE, "args": argparse.Namespace(lr=1e-3, out=Path("x"))}),
        ("metric.pth", {"state_dict": STATE, "metric": np.float64(80.0), "n": np.int64(3)}),
        ("only_ema.pth", {"state_dict_ema": STATE}),
        ("only_model_ema.pth", {"model_ema": STATE}),
        ("ema_beside.pth", {"model": ZERO, "model_ema": {"module": STATE}}),
        ("dino.pth", {"student": ZERO, "teacher": STATE}),
        ("averaged.pth", {**AVERAGED, "n_averaged": torch.tensor(3)}),
        ("no suffix", {"model": {"state_dict": STATE}}),
    ],
)
def test_what_training_programs_leave(name: str, content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / name)
    read = read_checkpoint(tmp_path / name)
    assert_same(read.state, STATE)
    averaged = any("ema" in key or key == "teacher" for key in content)
    assert read.kind == ("ema" if averaged else "")


def test_averaged_weights_beside_those_that_were_trained(tmp_path: Path) -> None:
    path = tmp_path / "both.pth"
    torch.save({"state_dict": ZERO, "state_dict_ema": STATE}, path)
    assert read_checkpoint(path).kind == "ema"
    assert_same(read_checkpoint(path, "ema").state, STATE)
    assert_same(read_checkpoint(path, "raw").state, ZERO)
    assert read_checkpoint(path, "raw").kind == "raw"
    torch.save({"state_dict": ZERO}, path)
    with pytest.raises(InputError, match=r"'both\.pth' holds no EMA weights"):
        read_checkpoint(path, "ema")
    with pytest.raises(InputError, match="weights is 'best', expected one of ema, raw"):
        read_checkpoint(path, "best")


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "module.net.encoder."])
def test_prefixes_are_found_by_the_models_keys(prefix: str) -> None:
    own = state_of(tiny.make("vit"))
    state = {prefix + key: value for key, value in own.items()}
    matched, notes = match_keys(state, own)
    assert_same(matched, own)
    assert notes == (f"prefix '{prefix}' taken off",)
    # A loss beside the model, and a head that lies outside of the backbone.
    beside = {k: v for k, v in state.items() if "head." not in k}
    beside |= {k: v for k, v in own.items() if k.startswith("head.")}
    beside["criterion.weight"] = torch.zeros(3)
    matched, notes = match_keys(beside, own)
    assert_same(matched, own)
    assert notes == (f"prefix '{prefix}' taken off", "1 other keys left out")


def test_keys_of_another_model_stay_as_they_are() -> None:
    own = state_of(tiny.make("vit"))
    other = {"other.weight": torch.zeros(2)}
    assert match_keys(other, own) == (other, ())
    assert match_keys(own, own)[1] == ()


def test_torchvisions_vit_becomes_timms() -> None:
    import_timm()
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    size = {"num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 96}
    theirs = torchvision.models.VisionTransformer(64, 16, **size, num_classes=7).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model = tiny.make("vit")
    state, notes = match_keys(theirs.state_dict(), model.state_dict())
    assert notes == ("keys of torchvision renamed",)
    load_strictly(model, state, "vit.pth")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), atol=1e-5, rtol=1e-4)


def test_mmpretrains_vit_becomes_timms() -> None:
    own = state_of(tiny.make("vit"))
    theirs = {}
    for key, value in own.items():
        name = re.sub(r"^blocks\.(\d+)\.", r"layers.\1.", key)
        for ours, mm in (
            ("patch_embed.proj.", "patch_embed.projection."),
            (".norm1.", ".ln1."),
            (".norm2.", ".ln2."),
            (".mlp.fc1.", ".ffn.layers.0.0."),
            (".mlp.fc2.", ".ffn.layers.1."),
        ):
            name = name.replace(ours, mm)
        name = re.sub(r"^norm\.", "ln1.", name)
        if name.startswith("head."):
            theirs[name.replace("head.", "head.layers.head.")] = value
        else:
            theirs[f"backbone.{name}"] = value
    state, notes = match_keys(theirs, own)
    assert notes == ("keys of MMPretrain renamed",)
    assert_same(state, own)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("vit.embeddings.patch_embeddings.projection.weight", "Hugging Face transformers model"),
        ("visual.transformer.resblocks.0.ln_1.weight", "OpenCLIP"),
        ("base_model.model.blocks.0.attn.qkv.lora_A.default.weight", r"adapter \(LoRA\)"),
        ("backbone.stages.0.blocks.0.attn.w_msa.qkv.weight", "MMPretrain's Swin"),
        ("features.1.0.attn.qkv.weight", "torchvision's Swin: give its name there"),
    ],
)
def test_keys_of_other_libraries_are_called_that(key: str, message: str) -> None:
    with pytest.raises(InputError, match=f"the keys are those of .*{message}"):
        load_strictly(tiny.make("vit"), {key: torch.zeros(2)}, "weights.pth")


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
