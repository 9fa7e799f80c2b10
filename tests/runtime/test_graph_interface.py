"""A graph whose interface is not the manifest's is refused by every engine when it opens."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_bundle import CHANNELS, CLASSES, SIZE, make_manifest, write_tiny_bundle
from vitcx.runtime.bundle import Bundle, write_manifest
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.engines.registry import open_session
from vitcx.runtime.errors import BundleError
from vitcx.runtime.graph_interface import GraphTensor, Interface, check_interface, interface_of

MANIFEST = make_manifest(
    model_name="tiny",
    source="tests",
    layer_path="embedding",
    input_size=(SIZE, SIZE),
    grid=(4, 4),
    channels=CHANNELS,
    class_names=("a", "b"),
    files={"model.onnx": "0" * 64},
)
RIGHT = interface_of(MANIFEST)
(IMAGES,), (PROBABILITIES, EMBEDDING) = RIGHT.inputs, RIGHT.outputs
TOKENS = GraphTensor("tokens", "float32", (None, 17, 8))


def test_what_the_manifest_says_fits_and_more_outputs_may():
    check_interface("the graph", RIGHT, RIGHT, all_sizes_known=True, more_outputs=False)
    more = replace(RIGHT, outputs=(TOKENS, *RIGHT.outputs))
    check_interface("the graph", more, RIGHT)
    with pytest.raises(BundleError, match=r"gives 'tokens' float32 \(any, 17, 8\) and"):
        check_interface("the graph", more, RIGHT, more_outputs=False)


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ((), RIGHT.outputs, "takes nothing, and"),
        ((replace(IMAGES, name="x"),), RIGHT.outputs, r"takes 'x' float32 \(any, 3, 32, 32\)"),
        ((IMAGES, TOKENS), RIGHT.outputs, "and 'tokens'"),
        ((replace(IMAGES, dtype="float16"),), RIGHT.outputs, "'images' float16"),
        ((replace(IMAGES, shape=(None, 3, 48, 48)),), RIGHT.outputs, "says 'images' .* 32, 32"),
        ((replace(IMAGES, shape=(None, 3, SIZE)),), RIGHT.outputs, r"\(any, 3, 32\)"),
        ((replace(IMAGES, shape=(1, 3, SIZE, SIZE)),), RIGHT.outputs, r"\(1, 3, 32, 32\)"),
        (RIGHT.inputs, (PROBABILITIES,), "gives 'probabilities'.*embedding"),
        (RIGHT.inputs, (replace(PROBABILITIES, shape=(None, 3)), EMBEDDING), r"\(any, 3\)"),
        (RIGHT.inputs, (PROBABILITIES, replace(EMBEDDING, dtype="bfloat16")), "bfloat16"),
    ],
)
def test_what_does_not_fit_is_named(inputs, outputs, words):
    with pytest.raises(BundleError, match=words):
        check_interface("the graph", Interface(inputs, outputs), RIGHT)


def test_sizes_that_only_a_run_tells_are_refused_where_buffers_are_lent():
    loose = replace(RIGHT, inputs=(replace(IMAGES, shape=(None, 3, None, None)),))
    check_interface("the graph", loose, RIGHT)
    with pytest.raises(BundleError, match=r"\(any, 3, any, any\)"):
        check_interface("the graph", loose, RIGHT, all_sizes_known=True)


def changed(bundle: Bundle, folder: Path, change: Any) -> Bundle:
    """A copy of a bundle whose graph `change` has altered, with a digest that fits."""
    import onnx

    model = onnx.load(bundle.model_path)
    change(model.graph)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    manifest = replace(bundle.manifest, files={"model.onnx": sha256_of(folder / "model.onnx")})
    write_manifest(folder, manifest)
    return Bundle(folder, manifest)


def other_size(graph: Any) -> None:
    for axis in graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value = SIZE + 16
    for axis in graph.output[1].type.tensor_type.shape.dim[2:]:
        axis.dim_value = 6


def fixed_batch(graph: Any) -> None:
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def other_name(graph: Any) -> None:
    graph.input[0].name = graph.node[0].input[0] = "pixels"


def fewer_classes(graph: Any) -> None:
    (head,) = [i for i in graph.initializer if i.name == "head"]
    head.dims[1] = CLASSES - 1
    head.raw_data = head.raw_data[: 4 * CHANNELS * (CLASSES - 1)]
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = CLASSES - 1


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_size, r"takes 'images' float32 \(any, 3, 48, 48\), and the manifest says .*32, 32"),
        (fixed_batch, r"takes 'images' float32 \(1, "),
        (other_name, "takes 'pixels'"),
        (fewer_classes, r"gives 'probabilities' float32 \(any, 4\), and .*\(any, 5\)"),
    ],
)
def test_an_engine_looks_at_all_of_it_when_it_opens(tmp_path, engine, change, words):
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    bundle = changed(write_tiny_bundle(tmp_path / "right"), tmp_path / "wrong", change)
    with pytest.raises(BundleError, match=words), contextlib.closing(open_session(bundle, engine)):
        pass
