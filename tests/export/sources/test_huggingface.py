"""Models of transformers, small and random, saved to a folder and opened from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vitcx
from vitcx.cli import main
from vitcx.export import export_model
from vitcx.export.graph.embedding import Site, WithEmbedding, find_site
from vitcx.export.graph.layout import Probe
from vitcx.export.graph.tokens import NoTeams, find_teams
from vitcx.export.preprocessing import Preprocessing
from vitcx.export.sources.huggingface import Features, huggingface_source, import_transformers
from vitcx.export.sources.huggingface_preprocessing import read_preprocessing
from vitcx.export.sources.source import Source
from vitcx.export.sources.zero_shot import zero_shot_source
from vitcx.runtime.errors import InputError

pytest.importorskip("tokenizers", reason="needs the extra 'hf'")
transformers = import_transformers()

CLASSES = {0: "cat", 1: "dog", 2: "elk", 3: "fox", 4: "gnu"}
_PLAIN = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "image_size": 112,
    "patch_size": 16,
}
_SWIN = {"patch_size": 4, "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 2]}
_TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_TOWERS = {"vision_config": _PLAIN, "text_config": _TEXT}
# Family -> class before "Config", class before "ForImageClassification", arguments, then what is
# expected: layer, end of its path, prefix tokens.
FAMILIES: dict[str, tuple[str, str, dict[str, Any], str, str, int]] = {
    "vit": ("ViT", "ViT", _PLAIN, "norm1", "layers.1.layernorm_before", 1),
    "deit": ("DeiT", "DeiT", _PLAIN, "norm1", "layers.1.layernorm_before", 2),
    "beit": ("Beit", "Beit", _PLAIN, "norm1", "layers.1.layernorm_before", 1),
    "data2vec": (
        "Data2VecVision",
        "Data2VecVision",
        _PLAIN,
        "norm1",
        "layer.1.layernorm_before",
        1,
    ),
    "dinov2": ("Dinov2", "Dinov2", {**_PLAIN, "patch_size": 14}, "norm1", "layer.1.norm1", 1),
    "dinov2_registers": (
        "Dinov2WithRegisters",
        "Dinov2WithRegisters",
        {**_PLAIN, "patch_size": 14},
        "norm1",
        "layer.1.norm1",
        5,
    ),
    "vit_msn": ("ViTMSN", "ViTMSN", _PLAIN, "norm1", "layers.1.layernorm_before", 1),
    "ijepa": ("IJepa", "IJepa", _PLAIN, "norm1", "layers.1.layernorm_before", 0),
    "swin": (
        "Swin",
        "Swin",
        {**_SWIN, "image_size": 128, "window_size": 4},
        "norm1",
        "layers.2.blocks.1.layernorm_before",
        0,
    ),
    # Its first normalisation comes after the attention: the block is taken.
    "swinv2": (
        "Swinv2",
        "Swinv2",
        {**_SWIN, "image_size": 128, "window_size": 8},
        "block",
        "layers.2.blocks.1",
        0,
    ),
    "pvt_v2": (
        "PvtV2",
        "PvtV2",
        {
            "image_size": 112,
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 2, 1],
            "num_attention_heads": [1, 1, 2, 2],
        },
        "norm1",
        "layers.2.blocks.1.layer_norm_1",
        0,
    ),
    "siglip": ("Siglip", "Siglip", _TOWERS, "norm1", "layers.1.layer_norm1", 0),
    "clip": ("CLIP", "CLIP", _TOWERS, "norm1", "layers.1.layer_norm1", 1),
}


def save(folder: Path, family: str, kind: str = "ForImageClassification", **more: Any) -> nn.Module:
    """Write a model of `family` to `folder`, with a preprocessor; the same weights each time."""
    config_class, model_class, arguments, *_ = FAMILIES[family]
    torch.manual_seed(0)
    labels = {"id2label": CLASSES, "label2id": {v: k for k, v in CLASSES.items()}, **more}
    config = getattr(transformers, f"{config_class}Config")(**arguments, **labels)
    model: nn.Module = getattr(transformers, model_class + kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    size = arguments.get("image_size", 112)
    values = {
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return model


def opened(folder: Path, **options: Any) -> Source:
    return huggingface_source(str(folder), None, headless=options.get("headless", False))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder needs no network: there is none."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_every_family(family: str, tmp_path: Path) -> None:
    model = save(tmp_path, family)
    *_, layer, path, prefix = FAMILIES[family]
    source = opened(tmp_path)
    p = source.preprocessing
    assert source.class_names == tuple(CLASSES.values())
    assert (p.mean, p.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert (p.interpolation, p.crop_mode) == ("bicubic", "squash")
    assert source.origin.startswith(f"folder: {tmp_path.name} (model.safetensors sha256 ")
    probe = Probe.of(p.input_size, 3)
    site = find_site(source.module, probe=probe)
    assert site.layer == layer
    assert site.path.endswith(path)
    assert getattr(site.arrange, "prefix", 0) == prefix
    wrapped = WithEmbedding(source.module, site)
    with torch.no_grad():
        probabilities, embedding = wrapped(probe.images[:2])
        expected = model(pixel_values=probe.images[:2]).logits.softmax(-1)
    wrapped.close()
    torch.testing.assert_close(probabilities, expected)
    assert embedding.ndim == 4
    if family in ("swin", "swinv2", "pvt_v2"):
        with pytest.raises(NoTeams, match="have seen each other before these blocks"):
            find_teams(source.module, probe.images.shape[1:], site=site)
    else:
        check_teams_of(source, site)


def check_teams_of(source: Source, site: Site) -> None:
    """Against the model itself with all patches, and with some of them for their number alone."""
    shape = (3, *source.preprocessing.input_size)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    teams = find_teams(source.module, shape, site=site)
    wrapped = WithEmbedding(source.module, site)
    wrapped.give_tokens(teams.blocks[0])
    with torch.no_grad():
        expected, _, tokens = wrapped(images)
        count = teams.grid[0] * teams.grid[1]
        patches = torch.stack([torch.arange(count), torch.arange(count).flip(0)])
        got = teams(tokens, torch.tensor([1, 0]), patches)
        some = teams(tokens, torch.tensor([1]), patches[:1, : count // 2])
    wrapped.close()
    torch.testing.assert_close(got, expected[[1, 0]], rtol=0, atol=1e-5)
    assert some.shape == (1, expected.shape[1])
    assert not torch.allclose(some[0], expected[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["beit", "data2vec"])
@pytest.mark.parametrize(
    "bias", ["use_relative_position_bias", "use_shared_relative_position_bias"]
)
def test_relative_positions_of_a_team(family: str, bias: str, tmp_path: Path) -> None:
    save(tmp_path, family, **{f"use_{bias}": True})
    source = opened(tmp_path)
    check_teams_of(source, find_site(source.module, probe=Probe.of((112, 112), 3)))


def test_rotary_positions_of_a_team(tmp_path: Path) -> None:
    config = transformers.DINOv3ViTConfig(**_PLAIN, num_register_tokens=4)
    source = Source(
        Features(transformers.DINOv3ViTModel(config).eval()),
        "dinov3",
        "",
        Preprocessing((112, 112), (0.5,) * 3, (0.5,) * 3, 1.0, "squash", "bicubic"),
        3,
    )
    check_teams_of(source, find_site(source.module, probe=Probe.of((112, 112), 3)))


def test_a_distilled_deit_with_its_teacher(tmp_path: Path) -> None:
    model = save(tmp_path, "deit", "ForImageClassificationWithTeacher")
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        found, expected = opened(tmp_path).module(images), model(pixel_values=images).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("problem", "head"),
    [
        ("multi_label_classification", "sigmoid"),
        ("single_label_classification", "softmax"),
        (None, None),
    ],
)
def test_the_problem_type_says_the_head(
    problem: str | None, head: str | None, tmp_path: Path
) -> None:
    save(tmp_path, "vit", problem_type=problem)
    assert opened(tmp_path).head == head


def test_a_backbone_has_features_and_no_classes(tmp_path: Path) -> None:
    model = save(tmp_path, "dinov2", "Model")
    with pytest.raises(InputError, match=r"has no classifier \(it lacks classifier\..*--head none"):
        opened(tmp_path)
    source = opened(tmp_path, headless=True)
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        expected = model(pixel_values=images).pooler_output
        torch.testing.assert_close(source.module(images), expected)
    assert (source.class_names, source.head) == (None, None)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_is_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = save(tmp_path / "base", "vit")
    config = peft.LoraConfig(
        r=2, target_modules=r".*(q_proj|v_proj|query|value)", modules_to_save=["classifier"]
    )
    adapted = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name or "classifier" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        expected = adapted(pixel_values=images).logits
        found = opened(tmp_path / "adapter").module(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a", "vit")
    (tmp_path / "a" / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        opened(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text("{}")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "transformers cannot open" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("values", "size", "fraction", "mode"),
    [
        ({"size": {"height": 224, "width": 192}}, (224, 192), 1.0, "squash"),
        ({"size": 224}, (224, 224), 1.0, "squash"),
        ({"size": 256, "crop_size": 224, "do_center_crop": True}, (224, 224), 0.875, "center"),
        (
            {
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
            },
            (224, 224),
            0.875,
            "center",
        ),
        ({"size": {"shortest_edge": 224}}, (224, 224), 1.0, "center"),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.9}, (224, 224), 0.9, "center"),
        ({"do_resize": False}, (112, 112), 1.0, "squash"),
    ],
)
def test_preprocessors_in_the_manifests_terms(
    values: dict[str, Any], size: tuple[int, int], fraction: float, mode: str
) -> None:
    config = transformers.ViTConfig(**_PLAIN)
    p = read_preprocessing(
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **values}, config, None
    )
    assert (p.input_size, p.crop_fraction, p.crop_mode) == (size, fraction, mode)


def test_numbers_that_are_not_scaled_to_one() -> None:
    config = transformers.ViTConfig(**_PLAIN)
    values = {"size": 112, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}
    p = read_preprocessing(values, config, None)
    assert (p.mean, p.std) == ((0.5,) * 3, (0.2,) * 3)
    p = read_preprocessing({"size": 112, "do_normalize": False}, config, None)
    assert (p.mean, p.std) == ((0.0,) * 3, (1.0,) * 3)


def save_towers(folder: Path, family: str) -> Any:
    """A CLIP or SigLIP with a tokenizer of a few words."""
    model = save(folder, family, "Model")
    words = ["<pad>", "<bos>", "<eos>", "a", "photo", "of", "cat", "dog"]
    tokenizers = pytest.importorskip("tokenizers")
    level = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>")
    base = tokenizers.Tokenizer(level)
    base.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    base.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=base,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=16,
    )
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize(("family", "head"), [("clip", "softmax"), ("siglip", "sigmoid")])
def test_labels_in_words(family: str, head: str, tmp_path: Path) -> None:
    model, tokenizer = save_towers(tmp_path, family)
    labels = ["a photo of a cat", "dog"]
    with pytest.raises(InputError, match="give --labels FILE"):
        zero_shot_source(f"clip:{tmp_path}", None, None)
    source = zero_shot_source(f"clip:{tmp_path}", labels, None)
    assert (source.class_names, source.head) == (tuple(labels), head)
    images = torch.randn(2, 3, 112, 112)
    padding = "max_length" if family == "siglip" else True
    tokens = tokenizer(labels, padding=padding, return_tensors="pt")
    with torch.no_grad():
        given = {k: v for k, v in tokens.items() if k != "token_type_ids"}
        expected = model(pixel_values=images, **given).logits_per_image
        torch.testing.assert_close(source.module(images), expected, atol=1e-4, rtol=1e-4)
    site = find_site(source.module, probe=Probe.of((112, 112), 3))
    assert site.path.endswith("layers.1.layer_norm1")


# `nn.Embedding` in a tower: torch calls its weights as our output is called.
@pytest.mark.slow
@pytest.mark.parametrize("family", ["siglip"])
def test_a_folder_becomes_a_bundle(family: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", family)
    bundle = export_model(str(tmp_path / "model"), tmp_path / "bundle", teams=False)
    assert bundle.manifest.class_names == tuple(CLASSES.values())
    picture = np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)
    with vitcx.load(bundle.path, engine="onnxruntime", threads=1) as explainer:
        result = explainer.explain(Image.fromarray(picture))
    pixels = (picture / 255 - bundle.manifest.mean) / bundle.manifest.std
    images = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.no_grad():
        expected = model(pixel_values=images).logits.softmax(-1)[0]
    np.testing.assert_allclose(result.probabilities, expected.numpy(), atol=1e-5)
    assert np.isfinite(result.saliency).all()
