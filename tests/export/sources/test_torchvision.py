"""torchvision's models by name, made small: their weights, sizes, classes and pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from vitcx.cli import main
from vitcx.export.graph.embedding import find_site
from vitcx.export.graph.layout import Probe
from vitcx.export.graph.tokens import find_teams
from vitcx.export.preprocessing import crop_share
from vitcx.export.sources.torchvision_models import torchvision_source
from vitcx.export.timm_import import import_timm
from vitcx.runtime.bundle import read_bundle
from vitcx.runtime.errors import InputError

import_timm()
torchvision = pytest.importorskip("torchvision")
VIT = "torchvision:vit_b_32"
Make = Callable[..., Any]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """What makes torchvision's ViTs, of two thin blocks."""
    size = {"num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48}
    small = functools.partial(torchvision.models.VisionTransformer, patch_size=32, **size)
    whole = torchvision.models.get_model

    def get_model(name: str, weights: None = None, **arguments: Any) -> nn.Module:
        if not name.startswith("vit_"):
            return whole(name, weights=weights, **arguments)
        torch.manual_seed(0)
        module: nn.Module = small(**arguments).eval()
        nn.init.normal_(module.get_submodule("heads.head").weight)
        return module

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    return functools.partial(get_model, "vit_b_32")


def answer(module: nn.Module, side: int = 224) -> Tensor:
    with torch.no_grad():
        logits: Tensor = module(torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side))
    return logits


def test_a_checkpoint_of_the_reference_scripts(make: Make, tmp_path: Path) -> None:
    trained = make(image_size=224, num_classes=5)
    averaged = {f"module.{key}": value + 0.01 for key, value in trained.state_dict().items()}
    path = tmp_path / "checkpoint.pth"
    averaged["n_averaged"] = torch.tensor(3)
    torch.save({"model": trained.state_dict(), "model_ema": averaged}, path)
    raw = torchvision_source(VIT, path, weights="raw")
    torch.testing.assert_close(answer(raw.module), answer(trained))
    assert raw.origin.startswith("checkpoint: checkpoint.pth (sha256 ")
    assert raw.origin.endswith("; its raw weights")
    assert (raw.name, raw.class_names, raw.preprocessing.input_size) == (
        "vit_b_32",
        None,
        (224, 224),
    )
    ema = torchvision_source(VIT, path, num_classes=5)
    assert ema.origin.endswith("; its EMA weights")
    assert not torch.equal(answer(ema.module), answer(trained))
    site = find_site(raw.module, probe=Probe.of((224, 224), 3))
    assert site.path == "encoder.layers.encoder_layer_1.ln_1"
    assert find_teams(raw.module, (3, 224, 224), site=site).prefix == 1


def test_the_names_of_the_first_weights(make: Make, tmp_path: Path) -> None:
    trained = make(image_size=224)
    old = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for key, value in trained.state_dict().items()
    }
    torch.save(old, tmp_path / "old.pth")
    source = torchvision_source(VIT, tmp_path / "old.pth")
    torch.testing.assert_close(answer(source.module), answer(trained))
    assert source.class_names is not None
    assert source.class_names[:2] == ("tench", "goldfish")


def test_the_size_is_that_of_the_weights_or_the_one_that_is_asked(
    make: Make, tmp_path: Path
) -> None:
    trained = make(image_size=128, num_classes=5)
    path = tmp_path / "w.pth"
    torch.save(trained.state_dict(), path)
    own = torchvision_source(VIT, path)
    assert own.preprocessing.input_size == (128, 128)
    torch.testing.assert_close(answer(own.module, 128), answer(trained, 128))
    resampled = torchvision_source(VIT, path, size=(192, 192))
    assert answer(resampled.module, 192).shape == (1, 5)
    with pytest.raises(InputError, match="128x192, and torchvision's ViT takes squares alone"):
        torchvision_source(VIT, path, size=(128, 192))
    with pytest.raises(InputError, match="does not make 'vit_b_32': Input shape indivisible"):
        torchvision_source(VIT, path, size=(100, 100))


def test_features_of_a_model_without_its_classifier(make: Make, tmp_path: Path) -> None:
    torch.save(make(image_size=224).state_dict(), tmp_path / "w.pth")
    source = torchvision_source(VIT, tmp_path / "w.pth", headless=True)
    assert answer(source.module).shape == (1, 24)
    assert source.class_names is None


def test_the_default_weights_are_torchvisions(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = make(image_size=224)
    asked = []

    def load(url: str, **options: Any) -> dict[str, Tensor]:
        asked.append((url.rpartition("/")[2], options["weights_only"], options["check_hash"]))
        state: dict[str, Tensor] = trained.state_dict()
        return state

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    source = torchvision_source(VIT)
    torch.testing.assert_close(answer(source.module), answer(trained))
    assert asked == [("vit_b_32-d86f8d99.pth", True, True)]
    assert source.origin.startswith("torchvision: https://")
    p = source.preprocessing
    assert (p.crop_fraction, p.interpolation, p.crop_mode) == (224 / 256, "bilinear", "center")
    with pytest.raises(InputError, match=r"num_classes is 3, but .* have 1000 classes"):
        torchvision_source(VIT, num_classes=3)

    def fail(url: str, **options: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(InputError, match=r"no route.*: check the network, or fetch the weights"):
        torchvision_source(VIT)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_b_23", "has no classifier 'vit_b_23': did you mean vit_b_32"),
        ("fcn_resnet50", "has no classifier 'fcn_resnet50'"),
        ("vit_b_32.V9", "has no weights 'V9' of 'vit_b_32', only IMAGENET1K_V1"),
        ("squeezenet1_1", "no attention was seen in SqueezeNet"),
    ],
)
def test_names_that_cannot_be(make: Make, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        torchvision_source(f"torchvision:{name}")


def test_weights_that_do_not_fit(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    trained = make(image_size=224, num_classes=5).state_dict()
    torch.save(trained, path)
    with pytest.raises(InputError, match=r"is 4, but the head in 'w\.pth' has 5 classes"):
        torchvision_source(VIT, path, num_classes=4)
    with pytest.raises(InputError, match="give --checkpoint too"):
        torchvision_source(VIT, weights="raw")
    torch.save({k: v for k, v in trained.items() if "heads" not in k}, path)
    with pytest.raises(InputError, match=r"has no heads\.head\.weight, the classifier"):
        torchvision_source(VIT, path)
    torch.save({k: v for k, v in trained.items() if "ln_2" not in k}, path)
    with pytest.raises(InputError, match=r"missing encoder\.layers\.encoder_layer_0\.ln_2"):
        torchvision_source(VIT, path)


def test_a_crops_share_gives_the_resized_side_back() -> None:
    for crop, resized in ((64, 93), (224, 354), (224, 232), (256, 372), (224, 224)):
        assert int(crop / crop_share(crop, resized)) == resized


@pytest.mark.slow
def test_by_name_on_the_command_line(make: Make, tmp_path: Path) -> None:
    torch.save(make(image_size=96, num_classes=2).state_dict(), tmp_path / "w.pth")
    arguments = ["export", VIT, "--checkpoint", str(tmp_path / "w.pth")]
    assert main([*arguments, "--out", str(tmp_path / "bundle")]) == 0
    m = read_bundle(tmp_path / "bundle").manifest
    assert (m.model_name, m.grid, m.layer) == ("vit_b_32", (3, 3), "norm1")


@pytest.mark.slow
def test_a_swin_by_name(tmp_path: Path) -> None:
    trained = torchvision.models.swin_t(num_classes=3)
    torch.save({"model": trained.state_dict()}, tmp_path / "w.pth")
    arguments = ["export", "torchvision:swin_t", "--checkpoint", str(tmp_path / "w.pth")]
    assert main([*arguments, "--out", str(tmp_path / "bundle")]) == 0
    m = read_bundle(tmp_path / "bundle").manifest
    assert (m.layer_path, m.grid, m.distance_threshold) == ("features.5.5.norm1", (14, 14), 0.05)
