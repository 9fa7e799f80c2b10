"""The files that a graph needs are found without the module onnx, and must have a digest."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundle import write_tiny_bundle
from vitcx.runtime.bundle import Bundle, read_bundle, write_manifest
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.errors import BundleError
from vitcx.runtime.onnx_files import external_files

onnx = pytest.importorskip("onnx")


def external(name: str, location: str) -> onnx.TensorProto:
    tensor = onnx.numpy_helper.from_array(np.zeros(2, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_they_are_found_wherever_a_graph_keeps_tensors(tmp_path):
    helper = onnx.helper
    inner = helper.make_graph([], "inner", [], [], [external("a", "in/a branch.bin")])
    node = helper.make_node("If", ["x"], [], then_branch=inner)
    node.attribute.append(helper.make_attribute("value", external("b", "attribute.bin")))
    node.attribute.append(helper.make_attribute("values", [external("c", "./list.bin")]))
    sparse = onnx.SparseTensorProto(
        values=external("d", "values.bin"), indices=external("e", "indices.bin")
    )
    graph = helper.make_graph(
        [node], "graph", [], [], [external("f", "weights.data"), external("g", "weights.data")]
    )
    graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph)
    model.functions.append(
        helper.make_function(
            "d",
            "f",
            [],
            [],
            [helper.make_node("Constant", [], ["y"], value=external("h", "f"))],
            [],
        )
    )
    model.metadata_props.add(key="location", value="not a file")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == {
        "in/a branch.bin",
        "attribute.bin",
        "list.bin",
        "values.bin",
        "indices.bin",
        "weights.data",
        "f",
    }


def with_weights_outside(folder: Path, location: str) -> Bundle:
    bundle = write_tiny_bundle(folder)
    model = onnx.load(bundle.model_path)
    (kernel,) = [i for i in model.graph.initializer if i.name == "kernel"]
    (folder / "w.bin").write_bytes(kernel.raw_data)
    onnx.external_data_helper.set_external_data(kernel, location, length=len(kernel.raw_data))
    kernel.ClearField("raw_data")
    bundle.model_path.write_bytes(model.SerializeToString())
    files = {"model.onnx": sha256_of(bundle.model_path)}
    manifest = dataclasses.replace(bundle.manifest, files=files)
    write_manifest(folder, manifest)
    return Bundle(folder, manifest)


def test_weights_without_a_digest_are_refused(tmp_path):
    bundle = with_weights_outside(tmp_path / "bundle", "w.bin")
    with pytest.raises(BundleError, match=r"keeps weights in 'w\.bin', which the manifest does"):
        read_bundle(bundle.path)
    files = {**bundle.manifest.files, "w.bin": sha256_of(bundle.path / "w.bin")}
    write_manifest(bundle.path, dataclasses.replace(bundle.manifest, files=files))
    read_bundle(bundle.path)
    (bundle.path / "w.bin").write_bytes(bytes(8))
    with pytest.raises(BundleError, match=r"w\.bin.*SHA-256 differs"):
        read_bundle(bundle.path)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "\x1b]0;x"])
def test_weights_elsewhere_are_refused_in_printable_words(tmp_path, location):
    bundle = with_weights_outside(tmp_path / "bundle", location)
    with pytest.raises(BundleError, match="keeps weights in") as caught:
        read_bundle(bundle.path)
    assert str(caught.value).isprintable()


def test_what_is_no_graph_is_refused_whatever_it_is(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    content = bundle.model_path.read_bytes()
    path = tmp_path / "broken.onnx"
    for broken in (b"", b"{}", content[:-1], content[: len(content) // 2], b"\xff" * 100):
        path.write_bytes(broken)
        with pytest.raises(BundleError, match="not an ONNX graph"):
            external_files(path)
    chance = random.Random(0)
    for _ in range(300):  # either it can be read or it is refused
        mutated = bytearray(content)
        for _ in range(chance.randint(1, 20)):
            mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        path.write_bytes(mutated)
        try:
            external_files(path)
        except BundleError:
            continue


def test_nesting_without_end_is_read_in_bounds(tmp_path):
    """A graph in an attribute in a node in a graph: the reader does not call itself."""
    content = b""
    for _ in range(4000):
        for tag in (b"\x0a", b"\x2a", b"\x32"):  # a graph's node, its attribute, that one's graph
            length, digits = len(content), bytearray()
            while length > 127:
                digits.append(length & 127 | 128)
                length >>= 7
            content = tag + bytes([*digits, length]) + content
    path = tmp_path / "deep.onnx"
    path.write_bytes(content)
    external_files(path)
