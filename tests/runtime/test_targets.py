"""What a word means as a target: the rule of `vitcx.runtime.targets`, case by case."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from vitcx.runtime.errors import InputError
from vitcx.runtime.targets import count_targets, read_target, resolve_targets

ANIMALS = ("tabby, tabby cat", "tiger", "Crane", "crane, bird", "fox")
DIGITS = ("3", "7", "1", "nine")
PROBABILITIES = np.array([0.1, 0.4, 0.2, 0.2, 0.1], np.float32)


def resolve(targets, names=ANIMALS):
    return resolve_targets(targets, PROBABILITIES[: len(names)], names)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, (1,)),
        (2, (2,)),
        (np.int64(2), (2,)),
        (np.array(2), (2,)),
        ("tiger", (1,)),
        (" TIGER ", (1,)),
        ("tabby cat", (0,)),
        ("tabby, tabby cat", (0,)),
        ("crane", (2,)),  # the whole name goes before a synonym
        ("bird", (3,)),
        ("top1", (1,)),
        ("top3", (1, 2, 3)),
        ("3", (3,)),
        ("3.0", (3,)),
        ("index:3", (3,)),
        ([0, "fox", "2"], (0, 4, 2)),
        (["fox", "top2"], (4, 1, 2)),
        (np.array([1, 0]), (1, 0)),
        ([4, 4], (4, 4)),
    ],
)
def test_numbers_are_indices_and_words_follow_the_rule(targets, expected):
    assert resolve(targets) == expected


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("3", (0,)),  # a class is called "3"
        (3, (3,)),  # a number is an index
        ("index:3", (3,)),
        ("2", (2,)),  # no class is called "2"
        ("7", (1,)),  # there is no index 7, and a class of that name
        (["1", 1], (2, 1)),
    ],
)
def test_a_class_that_is_called_by_a_number_goes_before_the_index(targets, expected):
    assert resolve(targets, DIGITS) == expected


def test_a_class_called_like_a_keyword_can_be_named():
    assert resolve("top2", ("a", "b", "top2")) == (2,)
    assert resolve(None, ("top1", "b")) == (1,)


def test_names_match_however_their_accents_are_stored():
    composed = unicodedata.normalize("NFC", "café")
    assert resolve(unicodedata.normalize("NFD", "Café"), ("tea", composed)) == (1,)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("9", "classes 0 to 4"),
        (-1, "classes 0 to 4"),
        ("-1", "no class called"),
        ("9" * 5000, "no class called"),
        ("³", "no class called"),
        ("tigre", "did you mean 'tiger'"),
        ("top9", "only 5 classes"),
        (["top9"], "only 5 classes"),
        (True, "bool"),
        (1.5, "float"),
        ([], "empty"),
        ("", "no class called"),
    ],
)
def test_what_is_no_target_is_refused_in_a_sentence(targets, words):
    with pytest.raises(InputError, match=words) as caught:
        resolve(targets)
    assert len(str(caught.value)) < 300


def test_a_name_of_several_classes_asks_for_the_index():
    with pytest.raises(InputError, match=r"\(0, 2\): give the index, index:0"):
        resolve("7", ("7", "x", "7"))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, None),
        (float("nan"), None),
        (np.float32("nan"), None),
        ("", None),
        ("  ", None),
        (" 3 ", "3"),  # a word: whether a class is called so is not known here
        ("fox", "fox"),
        (3, 3),
        (3.0, 3),
        (np.float64(3), 3),
        (np.int32(3), 3),
    ],
)
def test_a_cell_of_a_table(cell, expected):
    assert read_target(cell) == expected


@pytest.mark.parametrize("cell", [True, np.True_, 1.5, float("inf"), {"a": 1}, [3], b"3"])
def test_a_cell_that_is_no_target_is_refused(cell):
    with pytest.raises(InputError, match="neither a class index nor a class name"):
        read_target(cell)


@pytest.mark.parametrize(
    ("targets", "most"),
    [
        (None, 1),
        (7, 1),
        ("fox", 1),
        ("top5", 5),
        (" TOP500 ", 500),
        ([1, "fox", "top3"], 5),
        (["top9"] * 9, 81),
        (np.arange(4), 4),
        (np.array(4), 1),
    ],
)
def test_the_most_classes_that_targets_can_name(targets, most):
    assert count_targets(targets) == most
