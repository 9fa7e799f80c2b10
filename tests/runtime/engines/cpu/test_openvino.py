"""OpenVINO as an engine: parity with ONNX Runtime, threads, and bfloat16 by name alone."""

import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

import vitcx
from tests.tiny_bundle import add_encoder, random_picture, write_tiny_bundle
from vitcx.runtime.engines.cpu import openvino_engine
from vitcx.runtime.engines.cpu import openvino_session as module
from vitcx.runtime.engines.registry import open_session
from vitcx.runtime.errors import BundleError, EngineError, MissingExtraError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def openvino_session(bundle):
    with open_session(bundle, "openvino", threads=1, batch_size=4) as session:
        yield session


# Both compute in float32 and sum in their own order; the embedding's values go to 5.
PARITY = 1e-5


def pictures(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_openvino_gives_what_onnxruntime_gives(bundle, openvino_session, count):
    images = pictures(count)
    with open_session(bundle, "onnxruntime", threads=1, batch_size=4) as reference:
        expected = reference.encode(images)
        for ours, theirs in zip(openvino_session.encode(images), expected, strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=PARITY)
        np.testing.assert_allclose(
            openvino_session.predict(images), expected[0], rtol=0, atol=PARITY
        )


def test_openvino_answers_several_threads_at_a_time(openvino_session):
    inputs = [pictures(4, seed) for seed in range(6)]
    expected = [openvino_session.predict(images) for images in inputs]
    wrong = []

    def work(index):
        answers = [openvino_session.predict(inputs[index]) for _ in range(20)]
        wrong.extend(index for a in answers if not np.array_equal(a, expected[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_openvino_explanation_is_onnxruntimes(bundle):
    picture = random_picture(3)
    results = []
    for engine in ("onnxruntime", "openvino"):
        with vitcx.load(bundle.path, engine, threads=1, batch_size=8) as explainer:
            results.append(explainer.explain(picture))
    reference, ours = results
    assert ours.provenance["engine"] == "openvino"
    assert ours.provenance["execution_precision"] == "float32"
    assert reference.provenance["execution_precision"] == "fp32"
    np.testing.assert_allclose(ours.saliency, reference.saliency, rtol=0, atol=PARITY)


@pytest.mark.parametrize(("threads", "batch_size", "passes"), [(1, 4, 1), (2, 4, 2), (2, 1, 1)])
def test_openvino_takes_the_threads_it_is_given_and_has_a_stream_for_each_pass(
    bundle, threads, batch_size, passes
):
    with open_session(bundle, "openvino", threads, batch_size) as session:
        compiled = session._scorer._model
        assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
        assert compiled.get_property("NUM_STREAMS") == session.passes == passes


def test_a_graph_for_the_encoder_is_taken_for_it_alone(bundle, tmp_path):
    mixed = add_encoder(bundle, write_tiny_bundle(tmp_path / "other", seed=1))
    images = pictures(3)
    for name in ("openvino", "onnxruntime"):
        with (
            # Two models in one bundle, which the check would refuse.
            open_session(mixed, name, check=False) as session,
            open_session(bundle, name) as scorer,
            open_session(mixed.encoder, name) as encoder,
        ):
            np.testing.assert_array_equal(session.predict(images), scorer.predict(images))
            for mine, theirs in zip(session.encode(images), encoder.encode(images), strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_a_cpu_without_bfloat16_refuses_it(bundle, monkeypatch):
    monkeypatch.setattr(module, "cpu_of", lambda core: module.Cpu("An old CPU", ("float32",)))
    with pytest.raises(EngineError, match=r"An old CPU.*does not compute in bfloat16.*'openvino'"):
        open_session(bundle, "openvino-bf16")
    status = openvino_engine.probe("openvino-bf16")
    assert not status.available
    assert openvino_engine.probe("openvino").available


def test_bfloat16_is_said_wherever_it_was_used(bundle, monkeypatch):
    """On a CPU without it OpenVINO emulates bfloat16: slow, and enough to see that it is taken."""
    both = ("float32", "bfloat16")
    monkeypatch.setattr(module, "cpu_of", lambda core: module.Cpu("Pretended", both))
    assert openvino_engine.probe("openvino-bf16").reason.endswith("Pretended, bfloat16")
    try:
        session = open_session(bundle, "openvino-bf16", threads=1, batch_size=4)
    except EngineError as error:
        pytest.skip(f"OpenVINO does not emulate bfloat16 here: {error}")
    images = pictures(4)
    with (
        session,
        open_session(bundle, "onnxruntime", threads=1) as reference,
        open_session(bundle, "openvino", threads=1) as exact,
    ):
        assert (session.engine, session.precision) == ("openvino-bf16", "bfloat16")
        # The masks come from this: it stays in float32.
        assert session.encoder_precision == "float32"
        for mine, theirs in zip(session.encode(images), exact.encode(images), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        difference = np.abs(session.predict(images) - reference.predict(images)).max()
    # bfloat16 keeps 8 bits: the products differ by up to 2^-8 of themselves, and not by nothing.
    assert PARITY < difference < 0.05


def test_a_closed_session_says_so(bundle):
    session = open_session(bundle, "openvino")
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.predict(pictures(1))


def test_a_graph_that_openvino_cannot_read_is_a_fault_of_the_bundle(bundle, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="OpenVINO cannot load"):
        open_session(replace(bundle, path=tmp_path), "openvino")


def test_openvino_that_is_not_installed_names_its_extra(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"vitcx\[openvino\]"):
        open_session(bundle, "openvino")
