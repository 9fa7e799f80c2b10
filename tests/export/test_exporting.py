"""From a model to a bundle on disk, run with ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import vitcx
from tests.export import tiny
from vitcx.export import ModelSpec, export_model
from vitcx.export.folders import folder_in_place_of
from vitcx.export.graph import check_picture, parity, team_graph, to_onnx
from vitcx.export.graph.check_picture import measure_tolerances
from vitcx.export.graph.embedding import WithEmbedding, find_site, site_of_spec
from vitcx.runtime.bundle import Bundle, read_bundle
from vitcx.runtime.check_record import read_record
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.engines.registry import open_session
from vitcx.runtime.errors import BundleError, InputError


def assert_runs_like(bundle: Bundle, wrapped: WithEmbedding, batch: int) -> None:
    """The graph gives what torch gives, for a batch size that export did not try."""
    images = torch.randn(batch, 3, *bundle.manifest.input_size)
    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    probabilities, embedding = session.run(
        ["probabilities", "embedding"], {"images": images.numpy()}
    )
    with torch.no_grad():
        expected = [t.numpy() for t in wrapped(images)]
    np.testing.assert_allclose(probabilities, expected[0], atol=1e-6)
    np.testing.assert_allclose(embedding, expected[1], atol=2e-5 * np.abs(expected[1]).max())
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_the_manifest_of_a_vit(vit_bundle: Bundle) -> None:
    m = vit_bundle.manifest
    assert m.model_name == "vit_tiny_patch16_224"
    assert m.source == "module: timm.models.vision_transformer.VisionTransformer"
    assert (m.layer, m.layer_path, m.precision, m.opset) == ("norm1", "blocks.1.norm1", "fp32", 20)
    assert (m.input_size, m.grid, m.channels) == ((64, 64), (4, 4), 24)
    assert (m.mean, m.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (m.crop_fraction, m.crop_mode, m.interpolation) == (0.9, "center", "bicubic")
    assert m.class_names == tuple(f"class {i}" for i in range(tiny.CLASSES))
    assert m.distance_threshold == 0.1
    files = ["check.npz", "model.onnx", "teams.onnx", "weights.data"]
    assert m.files == {name: sha256_of(vit_bundle.path / name) for name in files}
    assert m.token_grid == (4, 4)
    assert {"torch", "timm", "onnx"} <= m.versions.keys()
    assert sorted(p.name for p in vit_bundle.path.iterdir()) == [
        "check.npz",
        "manifest.json",
        *files[1:],
    ]
    assert m.check_tolerances == {}
    assert [p.name for p in vit_bundle.path.parent.iterdir()] == [vit_bundle.path.name]


def test_parity_is_recorded_with_its_tolerances(vit_bundle: Bundle) -> None:
    figures = vit_bundle.manifest.parity
    assert figures["images"] == 2 * sum(parity.BATCH_SIZES)
    for name in ("probabilities_max_abs", "embedding_max_relative", "embedding_rms_relative"):
        limit = figures[f"{name.removesuffix('_max_abs')}_tolerance"]
        assert 0 <= figures[name] <= limit


def test_what_torch_makes_of_a_picture_is_recorded_for_the_engines(vit_bundle: Bundle) -> None:
    record = read_record(vit_bundle.path, vit_bundle.manifest)
    assert record is not None
    model = tiny.make("vit")
    wrapped = WithEmbedding(model, find_site(model, "norm1", None, -1))
    with torch.no_grad():
        probabilities, embedding = wrapped(torch.from_numpy(record.images))
    np.testing.assert_array_equal(record.probabilities, probabilities.numpy())
    np.testing.assert_array_equal(record.embedding, embedding.numpy())
    open_session(vit_bundle, "onnxruntime").close()


def test_an_engine_may_be_as_far_off_as_export_has_measured(vit_bundle: Bundle) -> None:
    record = read_record(vit_bundle.path, vit_bundle.manifest)
    assert record is not None
    assert measure_tolerances(vit_bundle, record) == {}
    other = replace(record, embedding=record.embedding * np.float32(1.5))
    assert measure_tolerances(vit_bundle, other) == {"fp32": pytest.approx(1.0, rel=1e-3)}


def test_the_graph_holds_no_paths_or_traces(vit_bundle: Bundle) -> None:
    content = vit_bundle.model_path.read_bytes()
    for trace in (b"File ", b"site-packages", str(Path.cwd()).encode(), b"stack_trace"):
        assert trace not in content
    onnx.checker.check_model(vit_bundle.model_path, full_check=True)


@pytest.mark.parametrize(
    ("family", "size", "options"),
    [
        ("vit", (64, 64), {}),
        pytest.param("deit_distilled", (64, 96), {"layer": "attn"}, marks=pytest.mark.slow),
        pytest.param("deit3", (64, 64), {"layer": "block", "block": 0}, marks=pytest.mark.slow),
        pytest.param("vit_registers", (70, 56), {}, marks=pytest.mark.slow),
        pytest.param("swin", (64, 96), {"layer": "attn", "stage": 1}, marks=pytest.mark.slow),
    ],
)
def test_families_end_to_end(
    family: str,
    size: tuple[int, int],
    options: dict[str, Any],
    tmp_path: Path,
    vit_bundle: Bundle,
) -> None:
    model = tiny.make(family)
    bundle = vit_bundle
    if family != "vit":
        bundle = export_model(model, tmp_path / "bundle", img_size=size, **options)
    m = bundle.manifest
    assert m.input_size == size
    assert m.distance_threshold == (0.05 if family == "swin" else 0.1)
    wrapped = WithEmbedding(model, find_site(model, **options))
    assert_runs_like(bundle, wrapped, 5)
    wrapped.close()


class Pyramid(nn.Module):
    """Any module: tokens of 8-pixel patches, behind two prefix tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 6, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, 2, 6))
        self.mixer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.project(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(images.shape[0], -1, -1), tokens], 1)
        logits: torch.Tensor = self.head(self.mixer(tokens).mean(1))
        return logits


@pytest.fixture
def custom() -> tuple[nn.Module, ModelSpec]:
    torch.manual_seed(0)
    spec = ModelSpec(
        "mixer",
        input_size=(16, 24),
        grid=(2, 3),
        prefix_tokens=2,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        crop_fraction=0.8,
        crop_mode="squash",
        interpolation="bilinear",
        class_names=("cat", "dog", "neither"),
        distance_threshold=0.2,
        name="pyramid",
    )
    return Pyramid().eval(), spec


def test_any_module_with_a_spec(custom: tuple[nn.Module, ModelSpec], tmp_path: Path) -> None:
    model, spec = custom
    bundle = export_model(model, tmp_path / "bundle", spec=spec)
    m = bundle.manifest
    assert (m.model_name, m.layer_path, m.grid, m.channels) == ("pyramid", "mixer", (2, 3), 6)
    assert (m.mean, m.std, m.input_size) == (spec.mean, spec.std, (16, 24))
    assert (m.crop_fraction, m.crop_mode, m.interpolation) == (0.8, "squash", "bilinear")
    assert (m.class_names, m.distance_threshold) == (("cat", "dog", "neither"), 0.2)
    assert_runs_like(bundle, WithEmbedding(model, site_of_spec(model, spec)), 4)


def test_external_data_above_the_limit(
    custom: tuple[nn.Module, ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "_ONE_FILE_BYTES", 10)
    model, spec = custom
    bundle = export_model(model, tmp_path / "bundle", spec=spec)
    assert set(bundle.manifest.files) == {"check.npz", "model.onnx", "model.onnx.data"}
    assert_runs_like(bundle, WithEmbedding(model, site_of_spec(model, spec)), 2)
    (bundle.path / "model.onnx.data").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.onnx\.data"):
        read_bundle(bundle.path)


@pytest.fixture
def quick(custom: tuple[nn.Module, ModelSpec], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`export_model` of the custom module whose graph is a stand-in: for what is around it."""
    model, spec = custom

    def write(
        module: nn.Module, shape: tuple[int, ...], folder: Path, attention: str
    ) -> tuple[str, ...]:
        empty = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
        onnx.save(empty, folder / "model.onnx")
        return ("model.onnx",)

    monkeypatch.setattr(team_graph, "write_onnx", write)
    monkeypatch.setattr(team_graph, "check_parity", lambda *arguments: {})
    monkeypatch.setattr(check_picture, "measure_tolerances", lambda *arguments: {})
    yield lambda out, **options: export_model(model, out, spec=spec, **options)
    assert not any(module._forward_hooks for module in model.modules())


def test_steps_are_reported(quick: Any, tmp_path: Path) -> None:
    steps: list[str] = []
    quick(tmp_path / "bundle", report=steps.append)
    assert steps[-2:] == ["writing the ONNX graph", "comparing with torch"]


@pytest.mark.parametrize("error", [BundleError("differs"), KeyboardInterrupt()])
@pytest.mark.parametrize("occupied", [False, True])
def test_a_failed_check_leaves_what_was_there(
    quick: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    occupied: bool,
) -> None:
    if occupied:
        quick(tmp_path / "bundle")
        (tmp_path / "bundle" / "note").write_text("mine")

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(team_graph, "check_parity", fail)
    with pytest.raises(type(error)):
        quick(tmp_path / "bundle", force=True)
    assert [p.name for p in tmp_path.iterdir()] == (["bundle"] if occupied else [])
    if occupied:
        assert (tmp_path / "bundle" / "note").read_text() == "mine"


def test_a_bundle_that_cannot_be_put_in_place_gives_way_to_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").touch()

    def replace() -> None:
        with folder_in_place_of(target) as folder:
            folder.rmdir()  # so that the last step fails

    with pytest.raises(FileNotFoundError):
        replace()
    assert (target / "old").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_folders_that_are_taken(quick: Any, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    quick(taken)  # empty is fine
    with pytest.raises(InputError, match=r"not empty.*--force"):
        quick(taken)
    (taken / "stale").touch()
    quick(taken, force=True)
    assert sorted(p.name for p in taken.iterdir()) == ["check.npz", "manifest.json", "model.onnx"]
    (taken / "manifest.json").unlink()
    with pytest.raises(InputError, match="not empty and no bundle"):
        quick(taken, force=True)
    with pytest.raises(InputError, match="is a file"):
        quick(taken / "model.onnx")
    made = quick(tmp_path / "deep" / "er")
    assert made.path.stat().st_mode & 0o077 == (tmp_path / "deep").stat().st_mode & 0o077


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "mlp"}, "layer is 'mlp', expected one of norm1, attn, block"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"head": "argmax"}, "head is 'argmax'"),
        ({"mean": (0.1, 0.2)}, "mean has 2 numbers, and the model takes 3"),
        ({"std": (0.0,)}, "std is .*, expected numbers above 0"),
        ({"mean": (float("nan"),)}, "mean is .*, expected finite numbers"),
        ({"crop": 1.5}, r"crop is 1.5, expected a share in \(0, 1\] or squash"),
        ({"interpolation": "magic"}, "interpolation is 'magic', expected one of nearest"),
        ({"img_size": 0}, "img_size is 0"),
        ({"img_size": (1, 2, 3)}, "img_size is"),
        ({"img_size": 64}, "give the size in the spec"),
        ({"checkpoint": "x.pth"}, "go with a model by name"),
        ({"weights": "raw"}, "go with a model by name"),
        ({"num_classes": 3}, "go with a model by name"),
        ({"class_names": ["one"]}, "1 class names for 3 classes"),
        ({"stage": 1}, "stage and block choose"),
    ],
)
def test_settings_that_cannot_be(
    quick: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        quick(tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_does_not_run(custom: tuple[nn.Module, ModelSpec], tmp_path: Path) -> None:
    model, _ = custom
    spec = ModelSpec("mixer", input_size=(4, 4), grid=(2, 3))
    with pytest.raises(InputError, match="does not run on two 4x4 pictures"):
        export_model(model, tmp_path / "bundle", spec=spec)


def test_a_module_that_is_no_graph(tmp_path: Path) -> None:
    class Moody(Pyramid):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = super().forward(images)
            return logits if images.sum() > 1 else logits * 2

    spec = ModelSpec("mixer", input_size=(16, 24), grid=(2, 3), prefix_tokens=2)
    with pytest.raises(InputError, match=r"torch cannot make a graph.*not depend on pixel values"):
        export_model(Moody(), tmp_path / "bundle", spec=spec)
    assert list(tmp_path.iterdir()) == []


def test_padding_by_nothing_is_left_out_and_other_padding_is_not(tmp_path: Path) -> None:
    class Padding(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = nn.functional.pad(images, (0, 0, 0, 0))
            x = nn.functional.pad(x * 2, (0, 1, 0, 0))
            return x.mean((2, 3)).softmax(1), nn.functional.pad(x + 1, (0, 0))

    to_onnx.write_onnx(Padding().eval(), (3, 8, 8), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    pads = [node for node in graph.node if node.op_type == "Pad"]
    amounts = {i.name: onnx.numpy_helper.to_array(i).tolist() for i in graph.initializer}
    used = {name for node in graph.node for name in node.input}
    assert set(amounts) <= used
    # One of real padding; one whose output is the graph's own, which needs its name.
    assert sorted(sum(amounts[pad.input[1]]) for pad in pads) == [0, 1]
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    images = torch.randn(3, 3, 8, 8)
    for ours, theirs in zip(
        session.run(None, {"images": images.numpy()}), Padding()(images), strict=True
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_a_module_that_fixes_the_batch(tmp_path: Path) -> None:
    class Fixed(Pyramid):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.reshape(len(images), 3, 16, 24))

    spec = ModelSpec("mixer", input_size=(16, 24), grid=(2, 3), prefix_tokens=2)
    with pytest.raises(BundleError, match=r"dynamic batch.*len\(images\) fixes the batch"):
        export_model(Fixed(), tmp_path / "bundle", spec=spec)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_other_channels_than_three(channels: int, tmp_path: Path) -> None:
    model = tiny.make("vit", in_chans=channels)
    with pytest.raises(InputError, match=rf"takes {channels} channel.*give --mean and --std"):
        export_model(model, tmp_path / "bundle")
    bundle = export_model(model, tmp_path / "bundle", mean=[0.4], std=[0.2], teams=False)
    assert bundle.manifest.mean == (0.4,) * channels
    assert bundle.manifest.input_channels == channels
    wrapped = WithEmbedding(model, find_site(model))
    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    images = torch.randn(5, channels, 64, 64)
    (probabilities,) = session.run(["probabilities"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(probabilities, wrapped(images)[0].numpy(), atol=1e-6)
    wrapped.close()


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    model = tiny.make("vit")
    with torch.no_grad():
        model.head.bias[3] = float("nan")
    with pytest.raises(InputError, match=r"'head.bias' holds NaN or infinite values \(1 of 7\)"):
        export_model(model, tmp_path / "bundle")
    model = tiny.make("vit")
    with torch.no_grad():
        model.head.bias[3], model.head.weight[3] = 3e38, 3e38
    with pytest.raises(InputError, match="NaN or infinite scores for ordinary pictures"):
        export_model(model, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_is_refused_unless_its_features_are_asked_for(tmp_path: Path) -> None:
    model = tiny.make("vit", num_classes=0)
    with pytest.raises(InputError, match="no classifier: it gives 24 features"):
        export_model(model, tmp_path / "bundle")
    picture = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 70, 3), np.uint8)).save(picture)
    bundle = export_model(
        model, tmp_path / "bundle", head="none", references=[picture], teams=False
    )
    m = bundle.manifest
    assert (m.head, m.target_kind, m.class_names) == (
        "none",
        "similarity",
        ("similar to cat.png",),
    )
    with vitcx.load(bundle.path, engine="onnxruntime", threads=1) as explainer:
        result = explainer.explain(picture)
    assert result.probabilities[0] == pytest.approx(1, abs=1e-4)
    assert result.title() == "similar to cat.png  1"


def test_a_projection_is_no_class(tmp_path: Path) -> None:
    model = tiny.make("vit", num_classes=512)
    model.pretrained_cfg["num_classes"] = 512
    with pytest.raises(InputError, match=r"nobody knows names for the 512 outputs.*CLIP"):
        export_model(model, tmp_path / "bundle")


def test_independent_labels(tmp_path: Path) -> None:
    model = tiny.make("vit")
    bundle = export_model(model, tmp_path / "bundle", head="sigmoid", teams=False)
    m = bundle.manifest
    assert (m.head, m.target_kind, m.class_names[1]) == ("sigmoid", "label", "label 1")
    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, 64, 64)
    (probabilities,) = session.run(["probabilities"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(probabilities, model(images).sigmoid().numpy(), atol=1e-6)


def test_a_module_that_says_nothing_of_its_pictures(quick: Any, tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny.make("vit")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(images)
            return logits

    out = tmp_path / "bundle"
    with pytest.raises(InputError, match="Plain does not say the size of its pictures"):
        export_model(Plain(), out)
    with pytest.raises(InputError, match="nobody knows how the pictures of this module are norm"):
        export_model(Plain(), out, img_size=64)
    m = export_model(Plain(), out, img_size=64, mean=[0.4], std=[0.2], teams=False).manifest
    assert (m.layer_path, m.grid, m.mean) == ("inner.blocks.1.norm1", (4, 4), (0.4, 0.4, 0.4))
    assert (m.input_size, m.crop_mode, m.crop_fraction) == ((64, 64), "center", 1.0)


def test_a_module_in_training_dress(quick: Any, tmp_path: Path) -> None:
    model = nn.DataParallel(tiny.make("vit").bfloat16())
    bundle = export_model(
        model, tmp_path / "bundle", layer="block", crop="squash", block=0, teams=False
    )
    m = bundle.manifest
    assert (m.layer, m.layer_path, m.crop_mode, m.crop_fraction) == (
        "block",
        "blocks.0",
        "squash",
        1.0,
    )
    assert m.source == "module: timm.models.vision_transformer.VisionTransformer"
    assert model.module.head.weight.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.shared
def test_real_weights_and_a_photograph(shared_dir: Path, tmp_path: Path) -> None:
    weights = shared_dir / "models" / "deit_tiny_patch16_224.safetensors"
    photograph = shared_dir / "images" / "paper" / "goldfish.jpg"
    bundle = export_model(
        "deit_tiny_patch16_224",
        tmp_path / "bundle",
        checkpoint=weights,
        check_images=[photograph],
    )
    m = bundle.manifest
    assert re.fullmatch(
        r"checkpoint: deit_tiny_patch16_224\.safetensors \(sha256 [0-9a-f]{64}\)", m.source
    )
    assert (m.grid, m.channels, m.num_classes, m.crop_fraction) == ((14, 14), 192, 1000, 0.9)
    assert m.layer_path == "blocks.11.norm1"
    assert m.parity["images"] == 9
    with Image.open(photograph) as file:
        picture = np.asarray(file.convert("RGB").resize((224, 224)), dtype=np.float32) / 255
    images = ((picture - m.mean) / m.std).transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"images": images})
    assert m.class_names[int(probabilities.argmax())] == "goldfish"
