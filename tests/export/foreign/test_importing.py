"""An ONNX file becomes a bundle that explains as the one from PyTorch does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import vitcx
from benchmarks import foreign_graphs
from benchmarks.foreign_graphs import Bytes, Ended, LastChannel, Recipe
from vitcx.cli import main
from vitcx.export import import_onnx
from vitcx.runtime.bundle import read_bundle

# Two programs add the same float32 numbers in another order. The maps are of 1 at most.
MAP_ATOL = 1e-4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPE = (3, 64, 64)
TORCHSCRIPT = Recipe("torchscript", 17)


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 255, (5, 5, 3), np.uint8)).resize((80, 64))


def explain(bundle, picture):
    with vitcx.load(bundle, engine="onnxruntime", threads=1) as explainer:
        return explainer.explain(picture, noise_std=0.1, seed=1)


@pytest.fixture(scope="module")
def expected(vit_bundle, picture):
    return explain(vit_bundle.path, picture)


@pytest.fixture
def own(vit_bundle):
    """How the model's pictures are made."""
    m = vit_bundle.manifest
    return {
        "mean": m.mean, "std": m.std, "crop": m.crop_fraction, "interpolation": m.interpolation,
    }  # fmt: skip


def assert_same(found, expected):
    assert found.masks.shape == expected.masks.shape
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(found.saliency, expected.saliency, atol=MAP_ATOL)


def test_the_maps_are_those_of_the_bundle_from_torch(vit_file, own, taken, expected, picture):
    bundle = taken(vit_file, **own)
    m = bundle.manifest
    assert (m.grid, m.channels, m.layer, m.head) == ((4, 4), 24, "norm1", "softmax")
    assert m.token_grid is None
    assert "torch" not in m.versions
    assert_same(explain(bundle.path, picture), expected)


@pytest.mark.parametrize(
    ("recipe", "change"),
    [
        (Recipe("torchscript", 14, fixed_batch=True), None),
        pytest.param(
            Recipe("torchscript", 17, all_axes=True),
            foreign_graphs.simplify,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["opset 14, batch of 1", "all axes dynamic, simplified"],
)
def test_forms_of_the_same_graph(recipe, change, vit, own, taken, tmp_path, expected, picture):
    path = tmp_path / "vit.onnx"
    foreign_graphs.write(vit, path, SHAPE, recipe)
    if change is not None:
        change(path)
    bundle = taken(path, **own)
    assert ("fixed batch was made dynamic" in bundle.manifest.source) == recipe.fixed_batch
    assert_same(explain(bundle.path, picture), expected)


def test_half_precision_computes_in_float32_with_the_same_weights(vit_file, own, taken, tmp_path):
    path = tmp_path / "half.onnx"
    path.write_bytes(vit_file.read_bytes())
    foreign_graphs.halve(path)
    bundle = taken(path, **own)
    assert "half precision became float32" in bundle.manifest.source
    model = onnx.load(bundle.model_path)
    assert {w.data_type for w in model.graph.initializer} <= {1, 7}


def test_bytes_with_the_normalisation_inside(vit, own, tmp_path, expected, picture):
    """The bundle begins behind it: noise and masks are of normalised pictures."""
    path = tmp_path / "bytes.onnx"
    model = Bytes(vit, own["mean"], own["std"]).eval()
    foreign_graphs.write(model, path, (64, 64, 3), TORCHSCRIPT)
    rest = {k: own[k] for k in ("crop", "interpolation")}
    bundle = import_onnx(path, tmp_path / "bundle", **rest)
    np.testing.assert_allclose(bundle.manifest.mean, own["mean"], atol=1e-5)
    np.testing.assert_allclose(bundle.manifest.std, own["std"], atol=1e-5)
    assert_same(explain(bundle.path, picture), expected)


@pytest.mark.slow
def test_channels_last(vit, own, taken, tmp_path, expected, picture):
    path = tmp_path / "last.onnx"
    foreign_graphs.write(LastChannel(vit).eval(), path, (64, 64, 3), TORCHSCRIPT)
    assert_same(explain(taken(path, **own).path, picture), expected)


@pytest.mark.slow
def test_probabilities_at_the_end_and_other_outputs(vit, own, taken, tmp_path, expected, picture):
    path = tmp_path / "probabilities.onnx"
    end = lambda logits: (logits.argmax(1), logits.softmax(1), logits[:, :4].tanh())  # noqa: E731
    names = ("label", "probabilities", "features")
    foreign_graphs.write(
        Ended(vit, end).eval(), path, SHAPE, Recipe("torchscript", 17, outputs=names)
    )
    assert_same(explain(taken(path, **own).path, picture), expected)


@pytest.mark.parametrize("layer", [pytest.param("attn", marks=pytest.mark.slow), "block"])
def test_other_layers(layer, vit_file, taken, tmp_path):
    """The values are those of the module of that name."""
    model = foreign_graphs.make_model("vit")
    path = tmp_path / "vit.onnx"
    foreign_graphs.write(model, path, SHAPE, TORCHSCRIPT)
    bundle = taken(path, layer=layer, block=1)
    assert bundle.manifest.layer == layer
    seen = []
    module = model.blocks[1].attn if layer == "attn" else model.blocks[1]
    module.register_forward_hook(lambda m, i, out: seen.append(out))
    with np.load(bundle.path / "check.npz") as record, torch.no_grad():
        model(torch.from_numpy(record["images"]))
        tokens = seen[0][:, 1:].transpose(1, 2).reshape(1, 24, 4, 4).numpy()
        np.testing.assert_allclose(record["embedding"], tokens, atol=2e-4)


def test_a_layer_by_name(vit_file, taken):
    name = "/blocks/blocks.0/norm2/LayerNormalization"
    m = taken(vit_file, layer=name).manifest
    assert m.layer_path == f"{name}_output_0"


@pytest.mark.slow
def test_heads(vit, taken, tmp_path):
    path = tmp_path / "sigmoid.onnx"
    foreign_graphs.write(Ended(vit, torch.sigmoid).eval(), path, SHAPE, TORCHSCRIPT)
    m = taken(path).manifest
    assert (m.head, m.target_kind, m.class_names[0]) == ("sigmoid", "label", "label 0")
    path = tmp_path / "one.onnx"
    foreign_graphs.write(Ended(vit, lambda logits: logits[:, :1]).eval(), path, SHAPE, TORCHSCRIPT)
    m = taken(path, head="binary", force=True).manifest
    assert (m.head, m.num_classes) == ("binary", 2)


@pytest.mark.slow
def test_features_and_their_similarity(vit_file, taken, tmp_path, picture):
    picture.save(tmp_path / "shoe.png")
    bundle = taken(vit_file, head="none", references=[tmp_path / "shoe.png"])
    assert bundle.manifest.class_names == ("similar to shoe.png",)
    found = explain(bundle.path, tmp_path / "shoe.png")
    assert found.probabilities.max() == pytest.approx(1, abs=1e-5)
    assert taken(vit_file, head="none", force=True).manifest.target_kind == "norm"


def test_weights_beside_the_file(vit_file, own, taken, tmp_path, expected, picture):
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    onnx.save(
        onnx.load(vit_file), path, save_as_external_data=True, location="model.onnx_data",
        size_threshold=0,
    )  # fmt: skip
    assert_same(explain(taken(path, **own).path, picture), expected)


def test_no_torch_and_no_timm_are_needed(vit_file, tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'onnxscript', 'onnx_ir', 'transformers'):\n"
        "    sys.modules[name] = None\n"
        "from vitcx.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["export", str(vit_file), "--out", str(tmp_path / "b"), "--mean", "0.5", "--std", "0.5"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--crop", "squash", "--interpolation", "bilinear"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(vitcx.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert "against the ONNX file on 4 images" in done.stdout
    assert read_bundle(tmp_path / "b").manifest.crop_mode == "squash"


def test_the_command_takes_what_the_function_does(vit_file, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
    options = ["--mean", "0.5", "--std", "0.5", "--crop", "0.9", "--interpolation", "bicubic"]
    out = str(tmp_path / "b")
    names = ["--class-names", str(tmp_path / "names.txt"), "--output", "logits"]
    assert main(["export", str(vit_file), "--out", out, *options, *names]) == 0
    assert "vit.onnx, 64x64, 7 classes, embedding 24x4x4" in capsys.readouterr().out
    assert read_bundle(out).manifest.class_names == tuple("abcdefg")
