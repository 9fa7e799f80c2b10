"""An engine that computes something else than the bundle's model is refused when it opens."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import vitcx
from tests.tiny_bundle import CHANNELS, CLASSES, SIZE, write_tiny_bundle
from vitcx.runtime.bundle import Bundle, read_bundle, write_manifest
from vitcx.runtime.check_record import CheckRecord, drawn_picture, read_record, write_record
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.engines import registry
from vitcx.runtime.engines.engine import Engine, EngineStatus
from vitcx.runtime.engines.session import PixelBatch, Scores, Session
from vitcx.runtime.errors import BundleError, EngineError
from vitcx.runtime.manifest import CHECK_NAME

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def add_record(bundle: Bundle) -> Bundle:
    """The bundle with a record of what ONNX Runtime makes of the picture."""
    manifest = bundle.manifest
    images = drawn_picture(manifest.input_size, manifest.mean, manifest.std)
    with registry.open_session(bundle, "onnxruntime", check=False) as session:
        write_record(bundle.path, CheckRecord(images, *session.encode(images)))
    return list_record(bundle)


def list_record(bundle: Bundle, **changes: Any) -> Bundle:
    files = {**bundle.manifest.files, CHECK_NAME: sha256_of(bundle.path / CHECK_NAME)}
    write_manifest(bundle.path, dataclasses.replace(bundle.manifest, files=files, **changes))
    return read_bundle(bundle.path)


@pytest.fixture
def old(tmp_path):
    return write_tiny_bundle(tmp_path / "old")


@pytest.fixture
def bundle(tmp_path):
    return add_record(write_tiny_bundle(tmp_path / "bundle"))


class Lying(Session):
    """ONNX Runtime, whose answers are changed."""

    engine, device, batch_size = "lying", "a bad card", 4

    def __init__(self, bundle: Bundle, lies: dict[str, Callable[[Any], Any]], precision: str = ""):
        super().__init__()
        self.inner = registry.open_session(bundle, "onnxruntime", threads=1, check=False)
        self.lies, self.precision, self.closed = lies, precision, False

    def _encode(self, images):
        probabilities, embedding = self.inner.encode(images)
        return (
            self.lies.get("encoded", lambda x: x)(probabilities),
            self.lies.get("embedding", lambda x: x)(embedding),
        )

    def _predict(self, images):
        return self.lies.get("scores", lambda x: x)(self.inner.predict(images))

    def _score(self, batch: PixelBatch) -> Scores:
        return self.inner.score(batch)

    def _close(self) -> None:
        self.closed = True
        self.inner.close()


@pytest.fixture
def lying(monkeypatch):
    """Puts a lying engine before the others; returns the list of its sessions."""
    opened: list[Lying] = []

    def install(precision: str = "", **lies: Callable[[Any], Any]) -> list[Lying]:
        def open_lying(bundle, options):
            opened.append(Lying(bundle, lies, precision))
            return opened[-1]

        record = Engine(
            "lying",
            probe=lambda device: EngineStatus("lying", True, "a bad card"),
            open=open_lying,
            extra="cpu",
            on_gpu=False,
            automatic=True,
        )
        honest = [engine for engine in registry.ENGINES if engine.name == "onnxruntime"]
        monkeypatch.setattr(registry, "ENGINES", (record, *honest))
        return opened

    return install


def raise_error(_: Any) -> Any:
    raise RuntimeError("Non-zero status code returned\nwhile running Conv")


def test_an_honest_engine_passes(bundle, lying):
    lying()
    with vitcx.load(bundle.path, "lying") as explainer:
        assert explainer.session.engine == "lying"


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"scores": lambda p: p[:, ::-1]}, r"the scores differ by \d+\.\d\d%.*at most 0\.20%"),
        ({"scores": lambda p: np.full_like(p, 1 / CLASSES)}, "the scores differ"),
        ({"encoded": lambda p: p[:, ::-1]}, "the encoder's scores differ"),
        ({"embedding": lambda e: e * np.float32(1.01)}, "the embedding differ"),
        ({"embedding": lambda e: e.transpose(0, 1, 3, 2).copy()}, "the embedding differ"),
        ({"embedding": lambda e: np.roll(e, 1, 3)}, "the embedding differ"),
    ],
)
def test_one_that_lies_is_named_and_closed(bundle, lying, lie, words):
    opened = lying(**lie)
    with pytest.raises(EngineError, match=words) as caught:
        vitcx.load(bundle.path, "lying")
    assert str(caught.value).startswith("the engine 'lying' on a bad card does not compute")
    assert "take another engine" in str(caught.value)
    assert str(caught.value).isprintable()
    assert opened[0].closed


def test_auto_takes_the_next_engine_and_says_why(bundle, lying, caplog):
    opened = lying(scores=lambda p: p[:, ::-1])
    with caplog.at_level(logging.WARNING, "vitcx"), vitcx.load(bundle.path) as explainer:
        assert explainer.session.engine == "onnxruntime"
    assert opened[0].closed
    assert "does not compute this model" in caplog.text


def rounded(probabilities):
    """As a half precision might: logits off by a few hundredths."""
    logits = np.log(probabilities) * np.linspace(0.95, 1.05, CLASSES, dtype=np.float32)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_the_tolerance_is_the_precisions(bundle, lying):
    lying(scores=rounded)
    with pytest.raises(EngineError, match="the scores differ"):
        vitcx.load(bundle.path, "lying")
    lying(precision="bfloat16", scores=rounded)
    vitcx.load(bundle.path, "lying").close()
    # What export has measured counts.
    list_record(bundle, check_tolerances={"fp32": 0.3})
    lying(scores=rounded)
    vitcx.load(bundle.path, "lying").close()


def test_without_a_record_encoder_and_scorer_must_agree(old, lying):
    assert read_record(old.path, old.manifest) is None
    lying(scores=lambda p: p[:, ::-1])
    with pytest.raises(EngineError, match="the scores differ"):
        vitcx.load(old.path, "lying")
    lying()
    vitcx.load(old.path, "lying").close()


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"scores": lambda p: p * np.nan}, "scores of .* are NaN or infinite"),
        ({"embedding": lambda e: e * np.inf}, "embedding of .* are NaN or infinite"),
        ({"scores": lambda p: 6.11 * p}, "no probabilities: the graph lacks the head's softmax"),
        ({"encoded": lambda p: -p}, "between -"),
        ({"encoded": lambda p: p / 2}, r"add up to 0\.5"),
        ({"scores": lambda p: p[:, 1:]}, r"the manifest says .*\(1, 5\)"),
        ({"embedding": lambda e: e[:, :, :2]}, rf"\(1, {CHANNELS}, 2, 4\)"),
        ({"scores": raise_error}, "cannot run the graph of .*Non-zero status code returned$"),
    ],
)
def test_what_is_no_answer_is_refused_with_or_without_a_record(
    old, bundle, lying, recorded, lie, words
):
    opened = lying(**lie)
    with pytest.raises(BundleError, match=words) as caught:
        vitcx.load((bundle if recorded else old).path, "lying")
    assert str(caught.value).isprintable()
    assert opened[0].closed


def test_the_record_is_no_part_of_the_model(old, bundle):
    assert old.manifest.model_sha256 == bundle.manifest.model_sha256


def test_the_same_record_has_the_same_bytes(bundle):
    before = (bundle.path / CHECK_NAME).read_bytes()
    write_record(bundle.path, read_record(bundle.path, bundle.manifest))
    assert (bundle.path / CHECK_NAME).read_bytes() == before


def test_a_record_that_is_none_is_refused(bundle):
    path = bundle.path / CHECK_NAME
    record = read_record(bundle.path, bundle.manifest)
    content = path.read_bytes()
    for broken in (b"", b"PK", content[:-30], content[:300] + bytes(60) + content[360:]):
        path.write_bytes(broken)
        with pytest.raises(BundleError, match="not a bundle's check file"):
            read_record(bundle.path, bundle.manifest)
    for changed in (
        dataclasses.replace(record, images=record.images[:, :2]),
        dataclasses.replace(record, embedding=record.embedding.astype(np.float64)),
        dataclasses.replace(record, probabilities=record.probabilities * np.nan),
        dataclasses.replace(record, probabilities=np.zeros((1, 10**6), np.float32)),
        dataclasses.replace(record, probabilities=np.array([object()])),
    ):
        write_record(bundle.path, changed)
        with pytest.raises(BundleError, match="not a bundle's check file") as caught:
            read_record(bundle.path, bundle.manifest)
        assert str(caught.value).isprintable()


def test_the_picture_is_the_same_every_time_and_of_any_number_of_channels():
    for channels in (1, 3, 4):
        picture = drawn_picture((SIZE, 2 * SIZE), [0.5] * channels, [0.25] * channels)
        assert picture.shape == (1, channels, SIZE, 2 * SIZE)
        assert picture.dtype == np.float32
        assert -2 <= picture.min() < picture.max() <= 2
        np.testing.assert_array_equal(
            picture, drawn_picture((SIZE, 2 * SIZE), [0.5] * channels, [0.25] * channels)
        )
