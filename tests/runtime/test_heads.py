"""Heads that give no probabilities, and inputs that are not three colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitcx
from tests.tiny_bundle import SIZE, make_manifest, random_picture, write_tiny_bundle
from vitcx.runtime.errors import BundleError, InputError
from vitcx.runtime.manifest import Manifest
from vitcx.runtime.pictures.preprocess import prepare

pytest.importorskip("onnx", reason="the tiny bundle is written with onnx")


def manifest(**fields: Any) -> Manifest:
    given: dict[str, Any] = {
        "model_name": "m",
        "source": "s",
        "layer_path": "p",
        "input_size": (32, 32),
        "grid": (4, 4),
        "channels": 6,
        "class_names": ("ant", "bee"),
        "files": {"model.onnx": ""},
    }
    return make_manifest(**given | fields)


def test_an_old_manifest_is_of_a_softmax_over_classes() -> None:
    values = json.loads(manifest().to_json())
    del values["head"], values["target_kind"]
    read = Manifest.from_json(json.dumps(values))
    assert (read.head, read.target_kind, read.scores_are_probabilities) == (
        "softmax",
        "class",
        True,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "argmax"}, "head is 'argmax', not one of softmax, sigmoid, binary"),
        ({"head": "none"}, "target_kind is 'class', and the head none has similarity or norm"),
        ({"target_kind": "value"}, "target_kind is 'value', and the head softmax has class"),
        ({"mean": (0.5,)}, "not one each for a channel"),
        ({"mean": (), "std": ()}, "not one each for a channel"),
    ],
)
def test_a_head_or_channels_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        manifest(**fields)


@pytest.mark.parametrize(
    ("head", "kind", "activation", "word"),
    [
        ("sigmoid", "label", "Sigmoid", "probability"),
        ("regression", "value", "Identity", "score"),
        ("none", "similarity", "Tanh", "score"),
    ],
)
def test_scores_are_called_what_they_are(
    head: str, kind: str, activation: str, word: str, tmp_path: Path
) -> None:
    bundle = write_tiny_bundle(
        tmp_path / "bundle", activation=activation, head=head, target_kind=kind
    )
    assert bundle.manifest.score_word == word
    with vitcx.load(bundle.path, engine="onnxruntime", threads=1) as explainer:
        result = explainer.explain(random_picture(0), "top2")
    assert result.target_kind == kind
    summary = result.summary()
    assert summary["target_kind"] == kind
    assert all((word in target) for target in summary["targets"])
    assert ("probability" in summary["targets"][0]) is (word == "probability")
    assert result.title().endswith("%") is (word == "probability")
    assert np.isfinite(result.saliency).all()


def test_one_channel_takes_the_grey_values_of_a_picture(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", colours=1)
    picture = random_picture(0, (SIZE, SIZE))
    prepared = prepare(picture, bundle.manifest)
    red, green, blue = (picture[..., i].astype(float) for i in range(3))
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    np.testing.assert_allclose(prepared.pixels[0], (grey / 255 - 0.5) / 0.25, atol=1 / 255 / 0.25)
    assert prepared.original.mode == "RGB"
    with vitcx.load(bundle.path, engine="onnxruntime", threads=1) as explainer:
        result = explainer.explain(picture)
        again = explainer.explain(prepared.pixels)
        assert result.overlay().size == (SIZE, SIZE)
        np.testing.assert_array_equal(result.saliency, again.saliency)
        assert np.ptp(np.asarray(again.original), axis=2).max() == 0  # grey, as RGB


def test_four_channels_take_arrays_alone(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", colours=4)
    rng = np.random.default_rng(0)
    array = rng.standard_normal((4, SIZE, SIZE), dtype=np.float32)
    with vitcx.load(bundle.path, engine="onnxruntime", threads=1) as explainer:
        result = explainer.explain(array)
        assert np.isfinite(result.saliency).all()
        assert np.ptp(result.saliency) > 0
        assert result.overlay().size == (SIZE, SIZE)
        with pytest.raises(InputError, match=r"takes 4 channels.*\(4,32,32\) float arrays"):
            explainer.explain(random_picture(0))
        with pytest.raises(InputError, match=r"takes normalised \(4,32,32\) arrays$"):
            explainer.explain(array[:3])
