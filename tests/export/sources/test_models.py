"""timm models by name: their weights, sizes, classes and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.export import tiny
from vitcx.export.preprocessing import preprocessing_of_timm
from vitcx.export.sources.checkpoint_files import read_checkpoint
from vitcx.export.sources.timm_models import resize, timm_model
from vitcx.export.timm_import import import_timm
from vitcx.runtime.errors import InputError

TINY = "test_vit"  # timm's own model for tests: 160 pixels, patch 16, width 64


def weights(path: Path, **changes: Any) -> tuple[Path, nn.Module]:
    """A file of random weights of `TINY`, and the model that they belong to."""
    model = import_timm().create_model(TINY, **changes).eval()
    save_file(model.state_dict(), path)
    return path, model


def test_a_checkpoint_gives_the_weights_and_the_classes(tmp_path: Path) -> None:
    path, trained = weights(tmp_path / "w.safetensors", num_classes=5)
    model, source = timm_model(TINY, path)
    assert source.startswith("checkpoint: w.safetensors (sha256 ")
    assert not model.training
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(model(images), trained(images))
    assert timm_model(TINY, path, num_classes=5)[0].num_classes == 5
    with pytest.raises(InputError, match=r"is 4, but the head in 'w\.safetensors' has 5"):
        timm_model(TINY, path, num_classes=4)


def test_what_was_done_with_the_weights_is_said(tmp_path: Path) -> None:
    _, trained = weights(tmp_path / "w.safetensors", num_classes=5)
    state = {f"model.{k}": v for k, v in trained.state_dict().items()}
    torch.save({"state_dict_ema": state, "model": state}, tmp_path / "both.ckpt")
    _, source = timm_model(TINY, tmp_path / "both.ckpt", weights="raw")
    assert source.endswith("); its raw weights; prefix 'model.' taken off")
    with pytest.raises(InputError, match="give --checkpoint too"):
        timm_model(TINY, weights="raw")


def test_channels_of_the_weights(tmp_path: Path) -> None:
    path, _ = weights(tmp_path / "w.safetensors", in_chans=1)
    model, _ = timm_model(TINY, path)
    assert model.patch_embed.proj.in_channels == 1


def test_a_masked_autoencoders_pooling(tmp_path: Path) -> None:
    path, trained = weights(tmp_path / "w.safetensors", global_pool="avg")
    model, _ = timm_model(TINY, path)
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(model(images), trained(images))


def test_weights_without_a_classifier(tmp_path: Path) -> None:
    path, trained = weights(tmp_path / "w.safetensors", num_classes=0)
    with pytest.raises(InputError, match=r"without a classifier.*--head none"):
        timm_model(TINY, path)
    model, _ = timm_model(TINY, path, headless=True)
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(model(images), trained(images))


def test_weights_of_the_models_own_size_are_resampled(tmp_path: Path) -> None:
    path, _ = weights(tmp_path / "w.safetensors")
    model, _ = timm_model(TINY, path, img_size=(96, 64))
    assert model(torch.zeros(1, 3, 96, 64)).shape == (1, 1000)


def test_weights_of_the_asked_size_are_taken_as_they_are(tmp_path: Path) -> None:
    path, trained = weights(tmp_path / "w.safetensors", img_size=(96, 64))
    model, _ = timm_model(TINY, path, img_size=(96, 64))
    assert torch.equal(model.pos_embed, trained.pos_embed)
    with pytest.raises(InputError, match=r"pos_embed is \(1, 25, 64\), expected \(1, 101, 64\)"):
        timm_model(TINY, path)
    assert "pos_embed" in read_checkpoint(path).state


def test_swin_keeps_its_windows() -> None:
    model = tiny.make("swin")
    table = model.layers[1].blocks[0].attn.relative_position_bias_table.clone()
    resize(model, (96, 128))
    assert model.layers[1].blocks[0].window_size == (5, 5)
    assert torch.equal(model.layers[1].blocks[0].attn.relative_position_bias_table, table)
    assert preprocessing_of_timm(model).input_size == (96, 128)


def test_sizes_that_cannot_be() -> None:
    for size in ((65, 64), (64, 72), (8, 8)):
        with pytest.raises(InputError, match="expected multiples of the patch, 16x16"):
            resize(tiny.make("vit"), size)
    with pytest.raises(InputError, match="cannot change its input size"):
        resize(nn.Linear(2, 2), (64, 64))
    model = tiny.make("vit")
    model.set_input_size = lambda img_size: (_ for _ in ()).throw(RuntimeError("no way"))
    with pytest.raises(InputError, match="cannot take 96x96 pictures: no way"):
        resize(model, (96, 96))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deit_tiny_patch16_244", "has no model.*did you mean deit_tiny_patch16_224"),
        ("zzzz", r"has no model 'zzzz': see timm\.list_models"),
        ("deit_tiny_patch16_224.no_such_tag", "no_such_tag"),
        ("timm/deit_tiny_patch16_224", "hf-hub:timm/deit_tiny_patch16_224"),
        ("resnet10t", "no attention was seen in ResNet"),
        ("test_vit4", "timm has no weights for 'test_vit4': give your own, --checkpoint FILE"),
    ],
)
def test_names_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        timm_model(name)


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"cannot get 'test_vit' from the hub.*--checkpoint FILE"):
        timm_model(TINY)


def test_a_new_head_needs_weights() -> None:
    with pytest.raises(InputError, match="a new head would be random"):
        timm_model(TINY, num_classes=3)


def test_an_error_of_timm_that_is_not_the_users_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(import_timm(), "create_model", fail)
    with pytest.raises(ZeroDivisionError):
        timm_model(TINY)


def test_the_hub_is_the_source_without_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    create = import_timm().create_model
    asked = []

    def local(name: str, pretrained: bool) -> nn.Module:
        asked.append(pretrained)
        model: nn.Module = create(name)
        return model

    monkeypatch.setattr(import_timm(), "create_model", local)
    _, source = timm_model(TINY, num_classes=1000)
    assert source == "timm hub: timm/test_vit.r160_in1k"
    assert asked == [False, True]


def test_pictures_as_timm_makes_them() -> None:
    model = tiny.make("deit3")
    p = preprocessing_of_timm(model)
    assert (p.input_size, p.crop_fraction, p.crop_mode) == ((64, 64), 0.9, "center")
    assert p.mean == (0.485, 0.456, 0.406)
    for timms, ours in (("border", "squash"), ("squash", "squash")):
        model.pretrained_cfg["crop_mode"] = timms
        assert preprocessing_of_timm(model).crop_mode == ours
    for key, value, message in (
        ("crop_mode", "spiral", "crop is 'spiral'"),
        ("interpolation", "random", "resize filter is 'random'"),
    ):
        changed = {**model.pretrained_cfg, "crop_mode": "center", key: value}
        other = tiny.make("deit3")
        other.pretrained_cfg = changed
        with pytest.raises(InputError, match=message):
            preprocessing_of_timm(other)
