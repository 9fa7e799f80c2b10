"""Explanations on an emulated driver, by the TensorRT session: test_emulated_driver.py runs these.

Beneath the session is the real `cuda.core`; a stand-in for TensorRT queues its passes on the
streams, which run beside the program. So what a session does not order, goes wrong here.
"""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import vitcx
from tests.emulator import emulated_driver
from tests.runtime.engines.tensorrt import recording_tensorrt
from tests.tiny_bundle import SIZE, add_encoder, random_picture, write_tiny_bundle
from vitcx.kernels.gpu.device import Gpu
from vitcx.kernels.mask_order import MaskOrder
from vitcx.runtime.engines.cpu.onnxruntime_session import OnnxRuntimeSession
from vitcx.runtime.engines.tensorrt import library as tensorrt_library
from vitcx.runtime.engines.tensorrt.session import TensorRTSession
from vitcx.runtime.errors import EngineError
from vitcx.runtime.explainer import Explainer

if "VITCX_EMULATED" not in os.environ:
    pytest.skip("for the emulated driver", allow_module_level=True)

TOLERANCE = 1e-5  # as in test_tensorrt_session
PICTURES = 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def team_bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "teams", teams=True)


@pytest.fixture(scope="module")
def pictures():
    return [random_picture(seed) for seed in range(PICTURES)]


@pytest.fixture(scope="module")
def expected(bundle, pictures):
    with Explainer(bundle, OnnxRuntimeSession(bundle)) as explainer:
        return list(explainer.explain_many(pictures, targets="top2"))


@pytest.fixture(autouse=True)
def nothing_is_left():
    """What a test opens it closes. Memory is freed by the streams, which may take their time."""
    Gpu()
    before = emulated_driver.counts()
    yield
    tensorrt_library.find_library.cache_clear()
    end = time.monotonic() + 5
    while emulated_driver.counts() != before and time.monotonic() < end:
        time.sleep(0.01)
    assert emulated_driver.counts() == before


def check(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.targets == theirs.targets
        for name in ("probabilities", "masks", "impacts", "saliency", "coverage"):
            np.testing.assert_allclose(
                getattr(ours, name), getattr(theirs, name), rtol=0, atol=TOLERANCE, err_msg=name
            )


@pytest.mark.parametrize(
    ("flavour", "old"), [("tensorrt", False), ("tensorrt", True), ("tensorrt-rtx", False)]
)
def test_explanations_are_those_of_the_cpu_engine(
    flavour, old, bundle, pictures, expected, monkeypatch, tmp_path
):
    record = recording_tensorrt.install(monkeypatch, tmp_path, flavour, old, emulated_driver)
    with Explainer(bundle, TensorRTSession(bundle, flavour, batch_size=8)) as explainer:
        assert explainer.session.makes_masks
        check(explainer.explain_many(pictures, targets="top2"), expected)
        check([explainer.explain(pictures[0], targets="top2")], expected[:1])
    assert record.passes


CLUSTERED = (
    {"distance_threshold": 0.3},
    {"distance_threshold": 0.5, "cluster_masks": "mean"},
    {"cluster_masks": "none"},
)


def test_masks_made_on_the_device_are_the_hosts(bundle, pictures, monkeypatch, tmp_path):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    with (
        Explainer(bundle, OnnxRuntimeSession(bundle)) as host,
        Explainer(bundle, TensorRTSession(bundle, batch_size=8)) as explainer,
    ):
        kinds = set()
        for settings in CLUSTERED:
            wanted = list(host.explain_many(pictures, **settings))
            check(explainer.explain_many(pictures, **settings), wanted)
            kinds.update(len(one.masks) for one in wanted)
        assert len(kinds) > 1  # some masks were merged, and some were not
        session = explainer.session
        images = np.zeros((3, 3, SIZE, SIZE), np.float32)
        images[1] = np.nan
        order = MaskOrder(0.1)
        encoded = session.encode_masks(images, [order, order, None])
        assert encoded.tokens is None
        assert encoded.masks[0].shape == (0, 4, 4)  # every channel is constant
        assert encoded.masks[1] is encoded.masks[2] is None
        np.testing.assert_array_equal(encoded.probabilities[2], session.encode(images)[0][2])


def test_explainers_on_several_threads_at_once(bundle, pictures, expected, monkeypatch, tmp_path):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    with (
        Explainer(bundle, TensorRTSession(bundle, batch_size=8)) as explainer,
        ThreadPoolExecutor(4) as pool,
    ):
        found = pool.map(lambda p: explainer.explain(p, targets="top2"), pictures * 3)
        check(found, expected * 3)


def test_an_encoder_with_a_plan_of_its_own(bundle, pictures, expected, monkeypatch, tmp_path):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    two = add_encoder(bundle, bundle)
    with Explainer(two, TensorRTSession(two, batch_size=8)) as explainer:
        check(explainer.explain_many(pictures, targets="top2"), expected)


def test_a_batch_that_does_not_fit_is_halved(bundle, pictures, expected, monkeypatch, tmp_path):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    row = 4 * 3 * SIZE * SIZE
    emulated_driver.set_memory(8 * (row + row + row // 3) + 4 * row + 60_000)
    try:
        with TensorRTSession(bundle, batch_size=64, encode_images=4) as session:
            assert session.batch_size == 8
            check(Explainer(bundle, session).explain_many(pictures, targets="top2"), expected)
    finally:
        emulated_driver.set_memory(1 << 30)


def test_a_picture_that_its_owner_is_still_writing_to_the_device(
    bundle, pictures, expected, monkeypatch, tmp_path
):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    gpu = Gpu()
    with (
        gpu.current(),
        Explainer(bundle, TensorRTSession(bundle, batch_size=8)) as explainer,
        gpu.new_stream() as first,
        gpu.new_stream() as theirs,
    ):
        for picture, wanted in zip(pictures, expected, strict=True):
            with (
                gpu.upload(picture, first) as source,
                gpu.zeros(picture.shape, picture.dtype, theirs) as lent,
            ):
                lent.buffer.copy_from(source.buffer, stream=theirs.native)
                check([explainer.explain(lent, targets="top2")], [wanted])


# Their masks have different resolutions: 4 x 4, 28 x 28, and every pixel.
METHODS = (
    {},
    {"method": "rise", "mask_count": 30},
    {"method": "occlusion"},
    {"method": "score-cam"},
    {"method": "random-cx", "mask_count": 10, "estimator": "teams"},
    {"estimator": "antithetic"},
)


@pytest.mark.parametrize("in_order", [True, False])
def test_methods_beside_one_another_from_many_callers(
    in_order, bundle, pictures, monkeypatch, tmp_path
):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    asked = [(picture, settings) for picture in pictures[:3] for settings in METHODS]
    with Explainer(bundle, OnnxRuntimeSession(bundle)) as explainer:
        expected = [explainer.explain(picture, "top2", **settings) for picture, settings in asked]
    with (
        Explainer(bundle, TensorRTSession(bundle, batch_size=8)) as explainer,
        ThreadPoolExecutor(6) as callers,
    ):
        found = callers.map(lambda one: explainer.explain(one[0], "top2", **one[1]), asked)
        check(found, expected)
        requests = [explainer.request(picture, "top2", **settings) for picture, settings in asked]
        with explainer.open_pipeline(in_order=in_order, limit=len(requests)) as pipeline:
            tickets = list(callers.map(pipeline.submit, requests))
            pipeline.end()
            check([ticket.result(timeout=60) for ticket in tickets], expected)


# Tokens in teams of half of the patches, of others, and pixels.
TEAMS = (
    {"preset": "quick"},
    {"preset": "balanced"},
    {"estimator": "teams-difference", "team_share": 0.3},
    {"estimator": "teams", "hidden": "pixels"},
    {"method": "rise", "mask_count": 20},
    {},
)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_teams_of_tokens_beside_pixels_from_many_callers(
    flavour, team_bundle, pictures, monkeypatch, tmp_path
):
    recording_tensorrt.install(monkeypatch, tmp_path, flavour, device=emulated_driver)
    asked = [(picture, settings) for picture in pictures[:3] for settings in TEAMS]
    with Explainer(team_bundle, OnnxRuntimeSession(team_bundle)) as explainer:
        expected = [explainer.explain(picture, "top2", **settings) for picture, settings in asked]
    assert [one.settings.get("hidden") for one in expected[:4]] == ["tokens"] * 3 + ["pixels"]
    with (
        Explainer(team_bundle, TensorRTSession(team_bundle, flavour, batch_size=8)) as explainer,
        ThreadPoolExecutor(6) as callers,
    ):
        found = list(callers.map(lambda one: explainer.explain(one[0], "top2", **one[1]), asked))
        check(found, expected)
        assert [one.settings for one in found] == [one.settings for one in expected]
        requests = [explainer.request(picture, "top2", **settings) for picture, settings in asked]
        with explainer.open_pipeline(in_order=False, limit=len(requests)) as pipeline:
            tickets = list(callers.map(pipeline.submit, requests))
            pipeline.end()
            check([ticket.result(timeout=60) for ticket in tickets], expected)


def test_teams_take_no_memory_after_the_session_is_open(
    team_bundle, pictures, monkeypatch, tmp_path
):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    with Explainer(team_bundle, TensorRTSession(team_bundle, batch_size=8)) as explainer:
        opened = explainer.session._opened
        with explainer.session._gpu.current():
            for pool in (opened.scorers, opened.teams, opened.encoders):
                with pool.take(), pool.take():
                    pass  # all that there are
        emulated_driver.set_memory(0)
        try:
            list(explainer.explain_many(pictures, preset="balanced"))
            for settings in TEAMS:
                explainer.explain(pictures[0], **settings)
        finally:
            emulated_driver.set_memory(1 << 30)


def test_no_method_takes_memory_after_the_session_is_open(bundle, pictures, monkeypatch, tmp_path):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    with Explainer(bundle, TensorRTSession(bundle, batch_size=8)) as explainer:
        opened = explainer.session._opened
        with explainer.session._gpu.current(), opened.scorers.take(), opened.scorers.take():
            pass  # all that there are
        emulated_driver.set_memory(0)
        try:
            for settings in METHODS:
                explainer.explain(pictures[0], **settings)
        finally:
            emulated_driver.set_memory(1 << 30)


@pytest.mark.parametrize("theirs", [0, None])
def test_the_callers_device_stays_theirs(theirs, bundle, pictures, expected, monkeypatch, tmp_path):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    with Gpu(0).current() if theirs == 0 else contextlib.nullcontext():
        before = emulated_driver.current_device()
        assert before == theirs
        session = TensorRTSession(bundle, batch_size=8, device=1)
        assert emulated_driver.current_device() == before
        check([Explainer(bundle, session).explain(pictures[0], targets="top2")], expected[:1])
        assert emulated_driver.current_device() == before
        session.close()
        assert emulated_driver.current_device() == before


def test_a_session_is_opened_on_the_gpu_that_is_asked_for(
    bundle, pictures, expected, monkeypatch, tmp_path
):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    with vitcx.load(bundle.path, "tensorrt", batch_size=8, device=1) as explainer:
        assert explainer.session._gpu.index == 1
        check([explainer.explain(pictures[0], targets="top2")], expected[:1])
    with pytest.raises(EngineError, match="GPU 2"):
        vitcx.load(bundle.path, "tensorrt", device=2)


class Interface:
    """Somebody's device array that tells ``__cuda_array_interface__`` alone."""

    def __init__(self, array):
        self.__cuda_array_interface__ = array.__cuda_array_interface__


@pytest.mark.parametrize("picture_on", [0, 1])
@pytest.mark.parametrize("session_on", [0, 1])
def test_a_picture_on_any_gpu_for_an_engine_on_any(
    picture_on, session_on, bundle, pictures, expected, monkeypatch, tmp_path
):
    recording_tensorrt.install(monkeypatch, tmp_path, device=emulated_driver)
    gpu = Gpu(picture_on)
    with Explainer(bundle, TensorRTSession(bundle, batch_size=8, device=session_on)) as explainer:
        for kind in (Interface, lambda array: array):
            with (
                gpu.current(),
                gpu.new_stream() as stream,
                gpu.upload(pictures[0], stream) as lent,
                Gpu(0).current(),
            ):
                check([explainer.explain(kind(lent), targets="top2")], expected[:1])
