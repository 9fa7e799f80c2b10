"""The comparison of two precisions, of bundles whose difference is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundle import random_picture, write_tiny_bundle
from vitcx.evaluation.map_agreement import compare_precisions, rank_correlation, summarise_precision
from vitcx.runtime.explainer import load
from vitcx.runtime.pictures.preprocess import prepare

pytest.importorskip("onnx", reason="needs the extra 'export'")


def test_a_model_is_like_itself_and_unlike_another(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_tiny_bundle(tmp_path / str(seed), seed)
    with load(tmp_path / "0") as one, load(tmp_path / "1") as other:
        pixels = [prepare(random_picture(seed), one.manifest).pixels for seed in range(4)]
        lines = list(compare_precisions(one, {"same": one, "other": other}, pixels, steps=8))
    same = summarise_precision([line["same"] for line in lines])
    assert same["images"] == 4
    assert same["top1_agreement"] == 1
    assert same["rank_correlation_min"] == pytest.approx(1)
    assert same["rank_correlation_same_noise_min"] == pytest.approx(1)
    assert same["probabilities_max_abs"] == same["deletion_change"] == same["insertion_change"] == 0
    unlike = summarise_precision([line["other"] for line in lines])
    assert unlike["top1_agreement"] < 1
    assert unlike["rank_correlation_median"] < 0.9
    assert unlike["probabilities_max_abs"] > 0.01
    # Maps that another model made are less faithful to this one.
    assert unlike["deletion_change"] - unlike["insertion_change"] > 0
    assert unlike["deletion_change_low"] <= unlike["deletion_change_high"]


def test_rank_correlation_of_maps() -> None:
    rising = np.arange(12, dtype=np.float32).reshape(3, 4)
    flat = np.ones_like(rising)
    assert rank_correlation(rising, rising**3) == pytest.approx(1)
    assert rank_correlation(rising, -rising) == pytest.approx(-1)
    assert rank_correlation(flat, flat) == 1
    assert rank_correlation(rising, flat) == 0
