"""What takes long, a picture's decoding or its explanation, beside an honest client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import vitcx
from tests.serving.running import TIMEOUT, comes, connect, figure, head, png, serving_here
from tests.slow_pictures import SLOW, busy, end_slow, slow_decoders
from vitcx.runtime.pictures import decoders
from vitcx.serving import pictures, reading
from vitcx.serving.limits import Limits


@pytest.fixture(scope="module")
def explainer(bundle: str) -> Any:
    with vitcx.load(bundle, "onnxruntime", 1, 8) as explainer:
        yield explainer


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with slow_decoders(monkeypatch):
        yield


def ask(client: httpx.Client, file: bytes) -> httpx.Response:
    return client.post("v1/explain", content=file, headers={"Content-Type": "image/png"})


@pytest.mark.usefixtures("slow")
def test_slow_pictures_hold_up_no_honest_client(
    explainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of them held the four threads that explain, for ten seconds."""
    monkeypatch.setattr(reading, "DECODE_SECONDS", 300.0)
    with serving_here(explainer, Limits()) as client, ThreadPoolExecutor(6) as pool:
        slow = [pool.submit(ask, client, SLOW) for _ in range(6)]
        assert comes(lambda: busy() == decoders.MOST_DECODERS)
        for i in range(3):
            assert ask(client, png(i)).status_code == 200
        assert sum(not future.done() for future in slow) >= decoders.MOST_SLOW
        assert comes(lambda: end_slow() or all(future.done() for future in slow))
        for future in slow:
            answer = future.result()
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "1"
            assert "others wait" in answer.json()["error"]
        assert figure(client, 'vitcx_rejects_total{reason="slow_picture"}') == len(slow)


@pytest.mark.usefixtures("slow")
def test_a_slow_picture_whose_client_has_gone_is_not_waited_for(
    explainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "DECODE_SECONDS", 300.0)
    lines = ("Content-Type: image/png", f"Content-Length: {len(SLOW)}")
    with serving_here(explainer, Limits()) as client:
        for i in range(decoders.MOST_DECODERS):
            with connect(client) as connection:
                connection.sendall(head("/v1/explain", *lines) + SLOW)
                assert comes(lambda i=i: busy() == i + 1)
            assert comes(lambda: figure(client, "vitcx_queue_depth") == 0)
        while busy():
            with ThreadPoolExecutor(decoders.MOST_DECODERS) as pool:
                answers = list(pool.map(lambda i: ask(client, png(i)), range(4)))
            assert {answer.status_code for answer in answers} == {200}


def test_few_large_pictures_are_in_memory_and_small_ones_pass_them(
    explainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "LARGE_PIXELS", 40 * 36)
    monkeypatch.setattr(decoders, "QUICK_SECONDS", 300.0)
    working = threading.Event()
    encode = explainer.session.encode

    def wait(images: Any) -> Any:
        working.wait(TIMEOUT)
        return encode(images)

    with serving_here(explainer, Limits()) as client, ThreadPoolExecutor(20) as pool:
        monkeypatch.setattr(explainer.session, "encode", wait)
        most = explainer.open_pipeline(workers=0).limit
        large = [pool.submit(ask, client, png(i, (41, 36))) for i in range(most + 3)]
        assert comes(lambda: figure(client, "vitcx_large_pictures") == most)
        small = pool.submit(ask, client, png())
        assert comes(lambda: figure(client, "vitcx_queue_depth") == most + 4)
        assert figure(client, "vitcx_large_pictures") == most
        working.set()
        assert small.result().status_code == 200
        assert {future.result().status_code for future in large} == {200}
        assert comes(lambda: figure(client, "vitcx_large_pictures") == 0)


def test_a_request_of_very_many_rows_lets_others_pass(explainer: Any) -> None:
    """It had the engine to itself until its deadline."""
    hog = {"settings": json.dumps({"method": "rise", "mask_count": 6000})}
    with serving_here(explainer, Limits()) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.post, "v1/explain", files={"image": png()}, data=hog)
        assert comes(lambda: figure(client, "vitcx_pending_rows") > 1000)
        assert ask(client, png(1)).status_code == 200
        assert not slow.done()
        assert slow.result().status_code == 200


def test_a_request_of_many_pictures_lets_others_pass(
    explainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = threading.Event()
    encode = explainer.session.encode
    order: list[bool] = []

    def wait(images: Any) -> Any:
        working.wait(TIMEOUT)
        order.append(bool((images == 0).all()))  # one of the many
        return encode(images)

    size = list(explainer.manifest.input_size)
    pixels = {"name": "images", "datatype": "FP32", "shape": [64, 3, *size]}
    many = {"inputs": [{**pixels, "data": [0] * (64 * 3 * size[0] * size[1])}]}
    with serving_here(explainer, Limits()) as client, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(explainer.session, "encode", wait)
        slow = pool.submit(client.post, "v2/models/tiny/infer", json=many)
        assert comes(lambda: figure(client, "vitcx_engine_call_seconds") > 0)
        honest = pool.submit(ask, client, png())
        assert comes(lambda: figure(client, "vitcx_queue_depth") == 2)
        assert comes(lambda: 'stage="decode"' in client.get("metrics").text)
        time.sleep(0.2)  # until it is in the pipeline
        working.set()
        assert honest.result().status_code == slow.result().status_code == 200
    assert order.index(False) < 10


def test_more_passes_than_anybody_needs_are_refused(explainer: Any) -> None:
    with serving_here(explainer, Limits()) as client:
        for count, code in ((20_000, 400), (4, 200)):
            data = {"settings": json.dumps({"method": "rise", "mask_count": count})}
            answer = client.post("v1/explain", files={"image": png()}, data=data)
            assert answer.status_code == code
            assert code == 200 or "up to 20,001 forward passes" in answer.json()["error"]
