"""Files and settings that cannot become a bundle: one sentence each, and nothing is left."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks import foreign_graphs
from benchmarks.foreign_graphs import Ended, Recipe
from vitcx.cli import main
from vitcx.export import import_onnx
from vitcx.runtime.errors import InputError

OPTIONS = ["--mean", "0.5", "--std", "0.5", "--crop", "0.9", "--interpolation", "bicubic"]
SHAPE = (3, 64, 64)
TORCHSCRIPT = Recipe("torchscript", 17)


def refused(capsys, tmp_path, path, *options, without=()):
    """What the command says of `path`."""
    usual = [w for i in range(0, 8, 2) if OPTIONS[i] not in without for w in OPTIONS[i : i + 2]]
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(path), "--out", str(tmp_path / "b"), *usual, *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vitcx: ")
    assert said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    return said


def test_what_nobody_knows_of_the_pictures_is_asked_for(vit_file, tmp_path, capsys):
    said = refused(capsys, tmp_path, vit_file, without=("--mean", "--std", "--crop"))
    assert "give --mean, --std, --crop; usual are" in said
    assert "0.485,0.456,0.406" in said
    said = refused(capsys, tmp_path, vit_file, without=("--interpolation",))
    assert "give --interpolation" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "nowhere"], "no node or value 'nowhere'"),
        (["--layer", "/blocks/blocks.1/attn/Softmax"], "does not lie in the picture as a grid"),
        (["--stage", "3"], "blocks of 1 resolutions"),
        (["--block", "9"], "block is 9"),
        (["--img-size", "32"], "pictures of 64x64 alone"),
        (["--output", "probabilities"], "no output 'probabilities'"),
        (["--head", "binary"], "is for one logit, and the graph gives 7"),
        (["--checkpoint", "a.pth"], "--checkpoint goes with a PyTorch model"),
        (["--precision", "fp16"], "--precision goes with a PyTorch model"),
        (["--reference", "x.png"], "go with the head none"),
    ],
)
def test_settings_that_do_not_fit(options, message, vit_file, tmp_path, capsys):
    assert message in refused(capsys, tmp_path, vit_file, *options)


def test_an_unknown_layer_names_those_that_are_there(vit_file, tmp_path, capsys):
    said = refused(capsys, tmp_path, vit_file, "--layer", "blocks.1.norm1")
    assert "/blocks/blocks.1/norm1/LayerNormalization_output_0" in said


def test_the_other_way_round_node_names_are_for_onnx_files_alone(tmp_path, capsys):
    assert main(["export", "vit", "--out", str(tmp_path / "b"), "--layer", "mlp"]) == 2
    assert "'mlp' is not one of norm1, attn, block" in capsys.readouterr().err
    assert main(["export", "vit", "--out", str(tmp_path / "b"), "--output", "x"]) == 2
    assert "--output goes with an ONNX file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda logits: logits[:, :1], "a softmax over one is always 1"),
        (torch.tanh, "does not come from a classifier"),
        (lambda logits: (logits, logits + 1), "say which has the answers, with --output"),
    ],
    ids=["one logit", "features", "two alike"],
)
def test_outputs_that_cannot_be_right(end, message, vit, tmp_path, capsys):
    path = tmp_path / "m.onnx"
    names = ("a", "b") if message.startswith("say") else ("a",)
    recipe = Recipe("torchscript", 17, outputs=names)
    foreign_graphs.write(Ended(vit, end).eval(), path, SHAPE, recipe)
    assert message in refused(capsys, tmp_path, path)


def changed(vit_file, path, change):
    model = onnx.load(vit_file)
    change(model)
    onnx.save(model, path)
    return path


def _old_opset(model):
    model.opset_import[0].version = 9


def _other_domain(model):
    model.graph.node[0].domain = "acme.ops"


def _second_input(model):
    model.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [1]))


def _nan(model):
    weight = model.graph.initializer[0]
    weight.CopyFrom(
        numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), np.nan), weight.name)
    )


def _cut_weight(model):
    weight = next(w for w in model.graph.initializer if len(w.raw_data) > 100)
    weight.raw_data = weight.raw_data[:50]


def _loop(model):
    model.graph.node[0].op_type = "Loop"


def _unknown_operator(model):
    model.graph.node[3].op_type = "Nonsense"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_old_opset, "uses opset 9, expected 11 to"),
        (_other_domain, "operators of 'acme.ops'"),
        (_second_input, "expected one input, of pictures"),
        (_nan, "holds NaN"),
        (_cut_weight, "has another size than it says"),
        (_loop, "has a loop"),
        (_unknown_operator, "ONNX Runtime cannot run the graph"),
    ],
)
def test_graphs_that_cannot_be_taken(change, message, vit_file, tmp_path, capsys):
    path = changed(vit_file, tmp_path / "m.onnx", change)
    assert message in refused(capsys, tmp_path, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no graph"),
        (b"GIF89a" * 50, "is not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    ],
)
def test_files_that_are_something_else(content, message, tmp_path, capsys):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert message in refused(capsys, tmp_path, path)


def test_a_file_that_is_cut_off(vit_file, tmp_path, capsys):
    path = tmp_path / "m.onnx"
    path.write_bytes(vit_file.read_bytes()[:-1000])
    assert "is not an ONNX file, or it is cut off" in refused(capsys, tmp_path, path)


def test_no_file_an_address_and_a_folder(tmp_path, capsys):
    assert "no ONNX file at" in refused(capsys, tmp_path, tmp_path / "none.onnx")
    assert "is an address" in refused(capsys, tmp_path, "https://example.org/m.onnx")
    (tmp_path / "f.onnx").mkdir()
    assert "is a folder" in refused(capsys, tmp_path, tmp_path / "f.onnx")


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "none.data", ""])
def test_weights_come_only_from_beside_the_file(location, vit_file, tmp_path, capsys):
    (tmp_path / "secret").write_bytes(b"x" * 100_000)
    folder = tmp_path / "in"
    folder.mkdir()

    def change(model):
        weight = next(w for w in model.graph.initializer if len(w.raw_data) > 100)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)

    path = changed(vit_file, folder / "m.onnx", change)
    assert "is not a file in its folder" in refused(capsys, tmp_path, path)


def test_a_link_out_of_the_folder_is_no_way_around(vit_file, tmp_path, capsys):
    (tmp_path / "secret").write_bytes(b"x" * 100_000)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "w.data").symlink_to(tmp_path / "secret")

    def change(model):
        weight = next(w for w in model.graph.initializer if len(w.raw_data) > 100)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="w.data")

    path = changed(vit_file, folder / "m.onnx", change)
    assert "is not a file in its folder" in refused(capsys, tmp_path, path)


def test_a_convolutional_network_is_called_that(tmp_path):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 16, 16), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 5)
    ).eval()
    path = tmp_path / "m.onnx"
    foreign_graphs.write(model, path, SHAPE, TORCHSCRIPT)
    with pytest.raises(InputError, match="has no attention"):
        import_onnx(path, tmp_path / "b", mean=(0.5,), std=(0.5,), crop=1, interpolation="bicubic")
