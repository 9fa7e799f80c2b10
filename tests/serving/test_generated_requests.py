"""Thousands of requests that no client should send, made from seeds: none ends in a 5xx."""

from __future__ import annotations

import logging
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

import vitcx
from benchmarks.attack_clients import exchange, is_failure
from benchmarks.bad_input import bad_request, photo
from tests.serving.running import figure, png, serving_here
from tests.tiny_bundle import SIZE
from vitcx.serving.limits import Limits

REQUESTS = 3000


@pytest.mark.slow
def test_no_generated_request_ends_in_an_error_of_the_server(
    bundle: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = photo(0, format="png")
    with (
        vitcx.load(bundle, "onnxruntime", 1, 8) as explainer,
        serving_here(explainer, Limits()) as client,
        caplog.at_level(logging.ERROR),
    ):

        def ask(seed: int) -> tuple[int, str]:
            request = bad_request(random.Random(seed), good, "tiny", SIZE)
            return seed, exchange(client.base_url.port, request)[0]

        with ThreadPoolExecutor(4) as pool:
            # Other seeds than the attack's.
            answers = list(pool.map(ask, range(10**6, 10**6 + REQUESTS)))
        assert [each for each in answers if is_failure(each[1]) or each[1] == "503"] == []
        codes = Counter(code for _, code in answers)
        assert codes["400"] > REQUESTS / 4, codes
        assert client.post("v1/explain", files={"image": png()}).status_code == 200
        assert client.get("readyz").status_code == 200
        assert figure(client, "vitcx_queue_depth") == 0
        assert figure(client, "vitcx_held_bytes") == 0
    assert not [record for record in caplog.records if record.exc_info]
