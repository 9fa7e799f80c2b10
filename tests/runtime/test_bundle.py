"""A bundle that does not fit is refused with the reason."""

import dataclasses
import json

import pytest

from tests.runtime.numpy_session import numpy_explainer
from vitcx.runtime.bundle import Manifest, read_bundle, write_manifest
from vitcx.runtime.digests import replacing, sha256_of
from vitcx.runtime.errors import BundleError


@pytest.fixture
def folder(tmp_path):
    """A bundle whose graph is a few bytes: nothing here runs it."""
    (tmp_path / "model.onnx").write_bytes(b"graph")
    manifest = dataclasses.replace(
        numpy_explainer().manifest,
        files={"model.onnx": sha256_of(tmp_path / "model.onnx")},
        parity={"probabilities_max_abs": 1e-6},
        versions={"onnx": "1"},
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_what_was_written_is_read(folder):
    bundle = read_bundle(folder)
    assert bundle.manifest.class_names[3] == "class 3"
    assert bundle.model_path.read_bytes() == b"graph"
    assert Manifest.from_json(bundle.manifest.to_json()) == bundle.manifest


def test_what_encodes_is_the_bundle_itself_or_the_float32_graph_beside_it(folder):
    bundle = read_bundle(folder)
    assert bundle.encoder is bundle
    assert bundle.manifest.encoder is bundle.manifest
    (folder / "encoder.onnx").write_bytes(b"exact")
    files = {name: sha256_of(folder / name) for name in ("model.onnx", "encoder.onnx")}
    manifest = dataclasses.replace(
        bundle.manifest, precision="int8", files=files, precision_figures={"images": 1.0}
    )
    write_manifest(folder, manifest)
    # Another encoder makes other masks: it is another model.
    assert bundle.manifest.model_sha256 == bundle.manifest.files["model.onnx"]
    others = [{**files, "encoder.onnx": "0" * 64}, {"model.onnx": files["model.onnx"]}]
    digests = [dataclasses.replace(manifest, files=f).model_sha256 for f in (files, *others)]
    assert len(set(digests)) == 3
    mixed = read_bundle(folder)
    assert mixed.model_path.read_bytes() == b"graph"
    assert mixed.encoder.manifest == mixed.manifest.encoder
    assert mixed.encoder.model_path.read_bytes() == b"exact"
    assert (mixed.manifest.precision, mixed.encoder.manifest.precision) == ("int8", "fp32")
    exact = mixed.encoder
    assert exact.encoder is exact
    (folder / "encoder.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"encoder\.onnx.*SHA-256 differs"):
        read_bundle(folder)


def change(folder, **entries):
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values.update(entries)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"layer": None}, "lacks: layer"),
        ({"colour": "red"}, "unknown entries: colour"),
        ({"layer": "norm7"}, "norm1, attn, block"),
        ({"precision": "fp12"}, "fp32"),
        ({"interpolation": "best"}, "bicubic"),
        ({"input_size": [224]}, "has 1 entries"),
        ({"input_size": [2, 2]}, "finer than"),
        ({"input_size": "224"}, "not a list"),
        ({"input_size": [16.0, 16]}, "not int"),
        ({"grid": [0, 4]}, "must be positive"),
        ({"mean": ["a", 0, 0]}, "not a number"),
        ({"std": [0, 1, 1]}, "std"),
        ({"class_names": []}, "class_names is empty"),
        ({"crop_fraction": 0}, "crop_fraction"),
        ({"distance_threshold": 1.5}, "distance_threshold"),
        ({"channels": True}, "not int"),
        ({"files": {}}, "does not list model.onnx"),
        ({"files": ["model.onnx"]}, "not an object"),
        ({"files": {"model.onnx": "0", "../x": "0"}}, "not a plain file name"),
        ({"files": {"model.onnx": "0" * 64}}, "SHA-256 differs"),
        ({"model_name": 3}, "not str"),
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_is_refused(folder, entries, words):
    change(folder, **entries)
    with pytest.raises(BundleError, match=words):
        read_bundle(folder)


def test_damage_is_found(folder):
    (folder / "model.onnx").write_bytes(b"graff")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        read_bundle(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks the file 'model\.onnx'"):
        read_bundle(folder)
    for text, words in (("{", "not JSON"), ("[]", "JSON list"), ('"\\ud800', "not JSON")):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(BundleError, match=words):
            read_bundle(folder)
    (folder / "manifest.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BundleError, match="cannot read"):
        read_bundle(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match="not a bundle"):
        read_bundle(folder)
    with pytest.raises(BundleError, match="no bundle at"):
        read_bundle(folder / "missing")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "x.txt"

    def fail_halfway():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert list(path.parent.iterdir()) == []
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
