"""Places in the server's queue, and whom a request counts for."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from starlette.requests import Request

import vitcx
from vitcx.serving.admission import Admission
from vitcx.serving.limits import Limits, Refused
from vitcx.serving.routes import client_of


def test_one_client_leaves_a_place_for_others(bundle: str) -> None:
    with vitcx.load(bundle, engine="onnxruntime", threads=1) as explainer, ExitStack() as taken:
        admission = Admission(explainer, Limits(queue=8))
        taken.callback(admission.close)
        for _ in range(7):
            taken.enter_context(admission.place("a"))
        with pytest.raises(Refused, match="7 requests are waiting") as refused:
            taken.enter_context(admission.place("a"))
        assert refused.value.status == 429
        with admission.place("b"), pytest.raises(Refused, match="8 requests are waiting"):
            taken.enter_context(admission.place("c"))
        assert admission.figures.text().decode().count("vitcx_queue_depth 7.0") == 1


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a name", "a name"),
        (None, ""),
    ],
)
def test_whom_a_request_counts_for(address: str | None, client: str) -> None:
    scope = {"type": "http", "headers": [], "client": address and (address, 1234)}
    assert client_of(Request(scope)) == client
