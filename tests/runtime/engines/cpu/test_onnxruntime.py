"""ONNX Runtime on the CPU, where a graph cannot be opened."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import vitcx
from tests.tiny_bundle import write_tiny_bundle
from vitcx.runtime.errors import BundleError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_a_damaged_graph_is_one_sentence_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime cannot decode its own message here, printed that, and tried again."""
    write_tiny_bundle(tmp_path)
    graph, manifest = tmp_path / "model.onnx", tmp_path / "manifest.json"
    damaged = graph.read_bytes().replace(b"Softmax", b"Soft\xffax")
    assert damaged != graph.read_bytes()
    graph.write_bytes(damaged)
    fields = json.loads(manifest.read_text())
    fields["files"]["model.onnx"] = hashlib.sha256(damaged).hexdigest()
    manifest.write_text(json.dumps(fields))
    with pytest.raises(BundleError) as error:
        vitcx.load(tmp_path, "onnxruntime")
    assert "\n" not in str(error.value)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
