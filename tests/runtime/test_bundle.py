"""A bundle that does not fit is refused with the reason."""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.runtime.numpy_session import numpy_explainer
from vitcx.runtime.bundle import read_bundle, write_manifest
from vitcx.runtime.digests import replacing, sha256_of
from vitcx.runtime.errors import BundleError
from vitcx.runtime.manifest import Manifest

# The least that is ONNX: the version of its format, and three others.
GRAPH, EXACT, OTHER = b"\x08\x08", b"\x08\x09", b"\x08\x0a"
WAIT = 20  # seconds: what hangs fails the test, it does not hang it


@pytest.fixture
def folder(tmp_path):
    """A bundle whose graph is a few bytes: nothing here runs it."""
    (tmp_path / "model.onnx").write_bytes(GRAPH)
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
    assert bundle.model_path.read_bytes() == GRAPH
    assert Manifest.from_json(bundle.manifest.to_json()) == bundle.manifest


def test_what_encodes_is_the_bundle_itself_or_the_float32_graph_beside_it(folder):
    bundle = read_bundle(folder)
    assert bundle.encoder is bundle
    assert bundle.manifest.encoder is bundle.manifest
    (folder / "encoder.onnx").write_bytes(EXACT)
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
    assert mixed.model_path.read_bytes() == GRAPH
    assert mixed.encoder.manifest == mixed.manifest.encoder
    assert mixed.encoder.model_path.read_bytes() == EXACT
    assert (mixed.manifest.precision, mixed.encoder.manifest.precision) == ("int8", "fp32")
    exact = mixed.encoder
    assert exact.encoder is exact
    (folder / "encoder.onnx").write_bytes(OTHER)
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
        ({"crop_fraction": 1e-300}, "crop_fraction"),
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
    (folder / "model.onnx").write_bytes(OTHER)
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "too many brackets"),
        ('{"schema_version":' + "1" * 5000 + "}", "not JSON"),
        ('{"schema_version":' + "1" * 4000 + "}", "schema version 1"),
        ('{"schema_version": 1, "' + "\\u001b]0;x" * 1000 + '": 1}', r"unknown entries: \\x1b"),
        ("", "not JSON"),
        ("NaN", "JSON float"),
        ('{"schema_version": 1, "layer": "a", "layer": "b"}', "has the key 'layer' twice"),
    ],
    ids=["deep", "5000 digits", "4000 digits", "escapes", "empty", "NaN", "twice"],
)
def test_a_manifest_made_to_do_harm_is_one_short_line(folder, text, words):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=words) as caught:
        read_bundle(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "entries",
    [
        {"mean": [10**400, 0, 0]},
        {"mean": [1e309, 0, 0]},
        {"mean": [float("nan"), 0, 0]},
        {"std": [1e-300, 1, 1]},
        {"std": [1e300, 1, 1]},
        {"input_size": [10**9, 10**9]},
        {"input_size": [10**4000, 1]},
        {"input_size": [-(10**4000), 1]},
        {"channels": 10**9},
        {"channels": -(10**4000)},
        {"grid": [10**400, 10**400], "input_size": [10**400, 10**400]},
        {"distance_threshold": float("nan")},
        {"class_names": ["\ud800"] * 4},
        {"model_name": "\ud800"},
        {"files": {"model.onnx": "0", "\ud800": "0"}},
        {"versions": {"\ud800": "0"}},
        {"class_names": {"a" * 10**6: 1}},
        {"schema_version": ["x" * 10**6]},
        {"parity": {"x" * 10**6: "y" * 10**6}},
    ],
    ids=lambda entries: "-".join(entries),
)
def test_absurd_entries_are_one_short_line(folder, entries):
    change(folder, **entries)
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_manifest_of_gigabytes_is_not_read(folder):
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(BundleError, match="more than"):
        read_bundle(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(folder, name, kind):
    path = folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read_bundle, folder)
        error = reading.exception(WAIT)
    assert isinstance(error, BundleError)
    assert name in str(error)


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
