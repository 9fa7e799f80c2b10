"""Names of classes: from files, from timm's label sets, or numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export import tiny
from vitcx.export.graph.heads import Head, Softmax
from vitcx.export.sources.class_files import read_class_names
from vitcx.export.sources.class_names import (
    label_set_names,
    resolve_class_names,
    shortest_distinct,
)
from vitcx.export.timm_import import import_timm
from vitcx.runtime.errors import InputError


@pytest.mark.parametrize(
    "text", ["cat\ndog, hound\n\n", '["cat", "dog, hound"]', "\ufeffcat\r\n dog, hound"]
)
def test_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_class_names(path) == ("cat", "dog, hound")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold names"),
        (b"[]", "must hold names"),
        (b'["a", 1]', "must hold names"),
        (b'["a",', "not one"),
        (b"\xff\xfe\xff", "cannot read class names"),
        (None, "cannot read class names"),
    ],
)
def test_files_that_cannot_be_used(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_class_names(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '["cat", "dog, wild"]'),
        ("config.json", '{"x": 1, "id2label": {"1": "dog, wild", "0": "cat"}}'),
        ("class_to_idx.json", '{"dog, wild": 1, "cat": 0}'),
        ("a.yaml", "names:\n  0: cat\n  1: 'dog, wild'\n"),
        ("b.yml", "- cat\n- dog, wild\n"),
        ("c.yaml", 'names: [cat, "dog, wild"]\n'),
        ("a.csv", 'cat\n"dog, wild"\n'),
        ("b.csv", 'index,name\n1,"dog, wild"\n0,cat\n'),
        ("c.csv", 'name,index\n"dog, wild",1\ncat,0\n'),
        ("a.txt", "cat\ndog, wild\n"),
    ],
)
def test_names_in_any_of_the_usual_files(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_class_names(tmp_path / name) == ("cat", "dog, wild")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", '{"cat": 0, "dog": 2}'), ("b.json", '{"a": "b"}'), ("a.csv", "0,cat\n0,dog\n")],
)
def test_indices_that_are_not_each_once(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="must hold names, one for each class from 0"):
        read_class_names(tmp_path / name)


def test_an_index_that_stands_twice_in_json_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"0": "cat", "0": "dog"}')
    with pytest.raises(InputError, match="has the key '0' twice"):
        read_class_names(tmp_path / "a.json")


def head(*names: str) -> Head:
    return Head("softmax", "class", Softmax(), names)


def test_imagenet_names_are_short_and_distinct() -> None:
    model = import_timm().create_model("test_vit")
    names = label_set_names(model)
    assert names is not None
    assert names[:3] == ("tench", "goldfish", "great white shark")
    assert len(set(names)) == 1000
    assert [n for n in names if n.startswith("crane")] == [
        "crane (large long-necked wading bird of marshes and plains in many parts of the world)",
        "crane (lifts and moves heavy objects)",
    ]


def test_other_counts_are_numbered() -> None:
    assert label_set_names(tiny.make("vit")) is None
    assert resolve_class_names(None, None, head("class 0", "class 1"), 2) == ("class 0", "class 1")
    assert resolve_class_names(None, ("a",), head("class 0", "class 1"), 2)[0] == "class 0"
    assert resolve_class_names(None, ("a", "b"), head("class 0", "class 1"), 2) == ("a", "b")


def test_names_that_the_model_brings() -> None:
    model = tiny.make("vit")
    model.pretrained_cfg.update(
        num_classes=2, label_names=["n1", "n2"], label_descriptions={"n1": "owl"}
    )
    model.num_classes = 2
    assert label_set_names(model) == ("owl", "n2")


def test_given_names_must_be_as_many_as_the_classes() -> None:
    assert resolve_class_names(["a", "b"], ("x", "y"), head("c", "d"), 2) == ("a", "b")
    with pytest.raises(InputError, match="3 class names for 2 classes"):
        resolve_class_names(["a", "b", "c"], None, head("c", "d"), 2)


def test_more_is_said_only_where_needed() -> None:
    synonyms = ["owl, bird", "suit, swimsuit", "suit, dress", "crane", "crane"]
    details = ["flies", "wet", "dry", "a bird", "a machine"]
    assert shortest_distinct(synonyms, details) == (
        "owl",
        "suit, swimsuit",
        "suit, dress",
        "crane (a bird)",
        "crane (a machine)",
    )
