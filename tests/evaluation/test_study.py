import json

import numpy as np
import pytest

from vitcx.evaluation.intervals import bootstrap
from vitcx.evaluation.masks import mean_similarity, overdetermination
from vitcx.evaluation.records import Records
from vitcx.evaluation.study import engine_method, explained, paired, run_study, summarise
from vitcx.evaluation.subjects import Subject
from vitcx.evaluation.variants import parse_variant
from vitcx.kernels.host.upsampling import upsample
from vitcx.runtime.errors import InputError


@pytest.fixture
def subjects(picture):
    truth = np.zeros((28, 28), dtype=bool)
    truth[2:9, 3:10] = True
    return [
        Subject(f"p{i}", np.roll(picture, i, axis=2), 1 if i == 2 else None, [(3, 2, 10, 9)], truth)
        for i in range(12)
    ]


def test_answers_come_in_order_with_their_subjects(explainer, subjects):
    answers = list(explained(explainer, subjects, {"method": "vit-cx"}))
    assert [a.subject.name for a in answers] == [s.name for s in subjects]
    for answer in answers:
        alone = explainer.explain(answer.subject.pixels, answer.subject.target)
        assert answer.target == alone.targets[0]
        np.testing.assert_allclose(answer.saliency, alone.saliency[0], atol=1e-5)
        assert answer.facts["masks"] == len(alone.masks)


def test_a_stopped_study_goes_on_and_ends_the_same(tmp_path, explainer, subjects):
    methods = {name: engine_method(explainer, name) for name in ("vit-cx", "random-order")}
    whole = Records(None, {})
    run_study(explainer.session, methods, lambda: subjects, whole, steps=5)
    assert len(whole) == 24

    path = tmp_path / "records.jsonl"
    first = Records(path, {"steps": 5})
    run_study(explainer.session, methods, lambda: subjects[:7], first, steps=5)
    text = path.read_text()
    path.write_text(text + '{"key": "vit-cx|p8", "ins')  # stopped in the middle of a line
    again = Records(path, {"steps": 5})
    assert len(again) == 14
    seen = []
    run_study(
        explainer.session,
        methods,
        lambda: subjects,
        again,
        steps=5,
        advance=lambda *told: seen.append(told),
    )
    for method in methods:
        assert (seen.count((method, False)), seen.count((method, True))) == (7, 5)
    ours, theirs = summarise(Records(path, {"steps": 5})), summarise(whole)
    for method in methods:
        assert ours[method]["difference"]["mean"] == pytest.approx(
            theirs[method]["difference"]["mean"], abs=1e-6
        )
    with pytest.raises(InputError, match="other settings"):
        Records(path, {"steps": 6})


def test_a_summary_has_what_the_records_allow(explainer, subjects):
    records = Records(None, {})
    methods = {"random-order": engine_method(explainer, "random-order")}
    run_study(explainer.session, methods, lambda: subjects, records, steps=4)
    found = summarise(records)["random-order"]
    assert found["pointing_small"]["count"] == 12
    assert found["pointing_small"]["chance"] == pytest.approx(49 / 784)
    assert found["pointing_small"]["centre"] == 0
    assert len(found["insertion_curve"]) == 5
    assert "masks" not in found
    json.dumps(found)
    assert paired(records, "random-order", "random-order").mean == 0


def test_bootstrap_intervals_cover_the_mean_of_a_known_sample():
    interval = bootstrap(np.random.default_rng(0).normal(2, 1, 400))
    assert interval.low < 2 < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert bootstrap([3.0]).low == 3.0


def test_variants():
    assert parse_variant("rise:mask_count=50,seed=3") == {
        "method": "rise",
        "mask_count": 50,
        "seed": 3,
    }
    assert parse_variant("vit-cx:debias=false,noise_std=0.2")["debias"] is False
    for bad in ("lime", "vit-cx:sigma=1", "vit-cx:seed=x", "vit-cx:debias=1", "rise:mask_count"):
        with pytest.raises(InputError):
            parse_variant(bad)


def test_mask_similarity_against_pixels(explainer, picture):
    masks = np.random.default_rng(0).random((6, 7, 7)).astype(np.float32)
    flat = upsample(masks, (28, 28)).reshape(6, -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    expected = np.mean([flat[i] @ flat[j] for i in range(6) for j in range(i)])
    assert mean_similarity(masks, (28, 28)) == pytest.approx(expected, abs=1e-5)


def test_overdetermination():
    found = overdetermination([np.array([0.95, 0.97]), np.array([0.2, 0.4])])
    assert found["share"] == 0.5
    assert found["variance"] == pytest.approx(0.0001)
    assert found["mean"] == pytest.approx(0.63)
    assert np.isnan(overdetermination([np.array([0.1])])["variance"])
