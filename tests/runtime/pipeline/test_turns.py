"""Whose turn it is where pictures are served as they come."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import vitcx
from tests.runtime.pipeline.test_pipeline import WAIT, Watched
from tests.tiny_bundle import random_picture, write_tiny_bundle
from vitcx.kernels.host.blend import KEPT
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.pipeline.packing import Packer
from vitcx.runtime.pipeline.scoring import Scoring, TokenRows
from vitcx.runtime.pipeline.ticket import Ticket
from vitcx.runtime.pipeline.turns import Turns
from vitcx.runtime.pipeline.work_queue import FAIR_BATCHES, Prepare, WorkQueue

BATCH = 8
REQUEST: Any = None  # nothing is done to it here
TARGET = np.zeros(1, np.int64)


def picture(rows: int, patches: int = 2) -> Scoring:
    """One of so many rows, which share a batch with those of as many patches."""
    teams = np.zeros((rows, patches), np.int64)
    return Scoring(TokenRows(np.zeros((5, 4), np.float32), {KEPT: teams}), rows, (KEPT,), TARGET)


def packer(long_batches: int = 4) -> Packer:
    session: Any = SimpleNamespace(batch_size=BATCH)
    return Packer(session, Turns(long_batches * BATCH, patience=3))


def order(packer: Packer, names: dict[str, Scoring], batches: int) -> list[str]:
    """Whose rows are in each of the next batches."""
    by_scoring = {scoring: name for name, scoring in names.items()}
    return [
        "+".join(by_scoring[scoring] for scoring in packer.pack().scorings) for _ in range(batches)
    ]


def test_rows_of_a_rare_kind_do_not_wait_for_all_rows_of_a_common_one():
    """Three rows never fill a batch, and 1,000 others always do: they waited for all of these."""
    many, few = picture(1000), picture(3, patches=3)
    line = packer()
    line.add(many, "a")
    line.add(few, "b")
    assert line.is_full
    assert "few" in order(line, {"many": many, "few": few}, 2)


@pytest.mark.parametrize("client", ["a", "b"])
def test_a_short_picture_goes_before_long_ones(client):
    long_ones = {f"long {i}": picture(1000) for i in range(3)}
    line = packer()
    for scoring in long_ones.values():
        line.add(scoring, "a")
    names = dict(long_ones)
    order(line, names, 15)  # each has had four batches or more
    names["short"] = picture(2 * BATCH)
    line.add(names["short"], client)
    assert order(line, names, 3).count("short") == 2  # the third may be overdue


def test_long_pictures_take_turns_and_are_not_forgotten():
    names = {"x": picture(1000), "y": picture(1000)}
    line = packer()
    for scoring in names.values():
        line.add(scoring, "a")
    order(line, names, 8)
    assert order(line, names, 4) in (["x", "y", "x", "y"], ["y", "x", "y", "x"])
    for i in range(20):
        names[f"short {i}"] = picture(BATCH)
        line.add(names[f"short {i}"], "b")
    served = order(line, names, 8)
    assert [name[0] for name in served] == ["s", "s", "s", served[3], "s", "s", "s", served[7]]
    assert {served[3], served[7]} == {"x", "y"}


def test_clients_have_as_many_rows_each():
    names = {f"a{i}": picture(BATCH) for i in range(6)} | {"b0": picture(BATCH)}
    line = packer()
    for name, scoring in names.items():
        line.add(scoring, name[0])
    assert order(line, names, 3) == ["a0", "b0", "a1"]
    names["b1"] = picture(BATCH)
    line.add(names["b1"], "b")
    # It begins with as many as the others have had: coming and going is worth nothing.
    assert order(line, names, 2) in (["a2", "b1"], ["b1", "a2"])


def test_what_fits_into_a_batch_goes_along():
    names = {"a": picture(3), "b": picture(3), "c": picture(3)}
    line = packer()
    for name, scoring in names.items():
        line.add(scoring, name)
    assert order(line, names, 2) == ["a+b+c", "c"]
    assert line.pending_rows == 0


def test_what_is_dropped_has_no_turn():
    names = {"a": picture(1000), "b": picture(BATCH)}
    line = packer()
    for name, scoring in names.items():
        line.add(scoring, name)
    line.cancel(names["a"])
    assert order(line, names, 1) == ["b"]
    assert line.pending_rows == 0
    assert not line.pack().owners


def in_hand(queue: WorkQueue) -> list[str]:
    """Whose pictures are read, until there is room for no more."""
    clients = []
    while isinstance(action := queue.next_action(), Prepare):
        clients.append(action.work.client)
    return clients


def work_queue(limit: int = 8) -> WorkQueue:
    session: Any = SimpleNamespace(batch_size=BATCH)
    return WorkQueue(session, limit=limit, scorers=2, encode_size=1, in_order=False)


def test_one_client_does_not_hold_all_pictures():
    queue = work_queue()
    for _ in range(20):
        queue.add(REQUEST, Ticket(), "a", 0)
    assert in_hand(queue) == ["a"] * 6
    queue.add(REQUEST, Ticket(), "b", 0)
    assert in_hand(queue) == ["b"]


def test_long_pictures_do_not_hold_all_places():
    queue = work_queue()
    for _ in range(20):
        queue.add(REQUEST, Ticket(), "a", FAIR_BATCHES * BATCH + 1)
    assert in_hand(queue) == ["a"] * 4
    queue.add(REQUEST, Ticket(), "a", FAIR_BATCHES * BATCH)
    assert in_hand(queue) == ["a"]


def test_one_picture_at_a_time_is_still_one():
    queue = work_queue(limit=1)
    queue.add(REQUEST, Ticket(), "a", 0)
    assert in_hand(queue) == ["a"]


@pytest.fixture
def explainer(tmp_path) -> Iterator[Explainer]:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_tiny_bundle(tmp_path)
    with vitcx.load(tmp_path, engine="onnxruntime", threads=1, batch_size=BATCH) as loaded:
        yield loaded


def test_a_request_for_thousands_of_masks_holds_up_no_other(explainer: Explainer):
    watched = Watched(explainer.session)
    explainer.session = watched
    expected = explainer.explain(random_picture(1)).saliency
    with explainer.open_pipeline(in_order=False, workers=2) as pipeline:
        long_ones = [
            pipeline.submit(explainer.request(random_picture(0), method="rise", mask_count=3000))
            for _ in range(2)
        ]
        watched.rows.clear()
        short = pipeline.submit(explainer.request(random_picture(1)))
        result = short.result(WAIT)
        assert not any(ticket.done() for ticket in long_ones)
        for ticket in long_ones:
            ticket.cancel()
    np.testing.assert_allclose(result.saliency, expected, atol=1e-5)
