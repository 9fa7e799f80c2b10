"""The host's steps are timed on a real embedding."""

from __future__ import annotations

import pytest
from PIL import Image

pytest.importorskip("onnx")

from benchmarks.host_cost import measure
from tests.tiny_bundle import CHANNELS, random_picture, write_tiny_bundle


def test_every_step_is_timed(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny")
    Image.fromarray(random_picture(0)).save(tmp_path / "picture.png")
    found = measure(str(bundle.path), str(tmp_path / "picture.png"), masks=3, rounds=4)
    assert (found["channels"], found["masks"]) == (CHANNELS, 3)
    assert len(found["milliseconds"]) == 6
    for step in found["milliseconds"].values():
        least, most = step["quartiles"]
        assert 0 < least <= step["median"] <= most
