"""`vitcx triton`: what it writes is what Triton's schema and its ONNX Runtime backend take."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitcx
from tests.tiny_bundle import write_tiny_bundle
from vitcx.cli import main
from vitcx.runtime.explainer import find_bundle

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", exc_type=ImportError)
text_format = pytest.importorskip("google.protobuf.text_format")
onnxruntime = pytest.importorskip("onnxruntime")


def read_config(folder: Path) -> Any:
    """A model's configuration, read by Triton's own schema: an unknown field is an error."""
    return text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), schema.ModelConfig())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "repository"
    words = ["triton", "demo", "--out", str(folder), "--name", "birds", "--all-graphs"]
    assert main([*words, "--max-batch-size", "16"]) == 0
    return folder


def test_each_graph_is_a_model_of_its_own(repository: Path) -> None:
    assert sorted(path.name for path in repository.iterdir()) == [
        "birds",
        "birds_encoder",
        "birds_teams",
    ]
    configs = {path.name: read_config(path) for path in repository.iterdir()}
    for name, config in configs.items():
        assert (config.name, config.backend) == (name, "onnxruntime")
        assert config.max_batch_size == (0 if name == "birds_teams" else 16)
        assert config.HasField("dynamic_batching") == (name != "birds_teams")
    outputs = {name: [o.name for o in config.output] for name, config in configs.items()}
    assert outputs == {
        "birds": ["probabilities"],
        "birds_encoder": ["probabilities", "embedding", "tokens"],
        "birds_teams": ["probabilities"],
    }


@pytest.mark.parametrize("name", ["birds", "birds_encoder", "birds_teams"])
def test_the_sizes_are_those_that_the_backend_compares(repository: Path, name: str) -> None:
    """The backend wants a graph's known sizes in the inputs, and all its sizes in the outputs."""
    config = read_config(repository / name)
    session = onnxruntime.InferenceSession(str(repository / name / "1" / "model.onnx"))
    types = {"tensor(float)": schema.TYPE_FP32, "tensor(int64)": schema.TYPE_INT64}
    assert len(config.input) == len(session.get_inputs())
    for tensors, found, exact in (
        (config.input, session.get_inputs(), False),
        (config.output, session.get_outputs(), True),
    ):
        by_name = {value.name: value for value in found}
        for tensor in tensors:
            sizes = [size if isinstance(size, int) else -1 for size in by_name[tensor.name].shape]
            dims = [*([-1] if config.max_batch_size else []), *tensor.dims]
            assert len(dims) == len(sizes)
            assert all(d == s for d, s in zip(dims, sizes, strict=True) if exact or s != -1)
            assert tensor.data_type == types[by_name[tensor.name].type]


def test_the_model_scores_as_the_bundle_does_and_names_the_classes(repository: Path) -> None:
    graph = repository / "birds" / "1" / "model.onnx"
    with vitcx.load("demo", "onnxruntime", 1) as explainer:
        size = explainer.manifest.input_size
        images = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
        expected = explainer.session.encode(images)[0]
        names = list(explainer.manifest.class_names)
    session = onnxruntime.InferenceSession(str(graph))
    np.testing.assert_allclose(
        session.run(["probabilities"], {"images": images})[0], expected, atol=1e-6
    )
    (output,) = read_config(repository / "birds").output
    labels = (repository / "birds" / output.label_filename).read_text("utf-8").splitlines()
    assert labels == names


def test_the_name_is_the_bundle_s_where_a_folder_can_have_it(tmp_path: Path) -> None:
    named = write_tiny_bundle(tmp_path / "bundle").manifest
    import dataclasses

    from vitcx.runtime.bundle import write_manifest

    write_manifest(tmp_path / "bundle", dataclasses.replace(named, model_name="timm/vit tiny:a"))
    assert main(["triton", str(tmp_path / "bundle"), "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["timm_vit_tiny_a"]


@pytest.mark.parametrize("name", ["", "../birds", "a b", ".birds", "-x", 'a"b'])
def test_a_name_that_is_no_folder_s_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["triton", "demo", "--out", str(tmp_path / "out"), f"--name={name}"]) == 2
    assert "cannot be a model's name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_models_stay_and_nothing_is_replaced_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    words = ["triton", str(tmp_path / "bundle"), "--out", str(tmp_path / "out"), "--name", "a"]
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "b" / "mine").write_text("x")
    assert main(words) == 0
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    assert main([*words[:-1], "b", "--force"]) == 2
    assert "is no model of Triton" in capsys.readouterr().err
    assert (tmp_path / "out" / "b" / "mine").read_text() == "x"
    assert main([*words[:3], str(tmp_path / "out" / "b" / "mine")]) == 2


def test_a_damaged_bundle_writes_nothing(tmp_path: Path) -> None:
    shutil.copytree(find_bundle("demo"), tmp_path / "bundle")
    (tmp_path / "bundle" / "model.onnx").write_bytes(b"x")
    assert main(["triton", str(tmp_path / "bundle"), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
