"""Teams of tokens on the engines of a CPU: scores, packing, and what cannot be asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vitcx
from tests.tiny_bundle import random_picture, write_tiny_bundle
from vitcx.runtime.bundle import Bundle, write_manifest
from vitcx.runtime.engines.session import Session, TeamBatch
from vitcx.runtime.errors import BundleError, InputError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.method.estimators.teams import make_teams

ENGINES = ("onnxruntime", "openvino")
# Probabilities of a float32 graph of a few products, in an order of summation of its own.
SCORE_TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("onnx")
    return write_tiny_bundle(tmp_path_factory.mktemp("teams"), teams=True)


@pytest.fixture(params=ENGINES)
def explainer(bundle: Bundle, request: pytest.FixtureRequest) -> Iterator[Explainer]:
    pytest.importorskip(request.param)
    with vitcx.load(bundle.path, engine=request.param, threads=2, batch_size=8) as loaded:
        yield loaded


def pixels(explainer: Explainer, seed: int) -> np.ndarray:
    size = (3, *explainer.manifest.input_size)
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def slow_scores(tokens: np.ndarray, team: np.ndarray, session: Session) -> np.ndarray:
    """One row alone, in a batch of one."""
    batch = TeamBatch([tokens], [0], [np.flatnonzero(team).astype(np.int64)])
    return session.score_teams(batch).probabilities[0]


def test_all_patches_are_the_model_itself(explainer: Explainer) -> None:
    images = np.stack([pixels(explainer, seed) for seed in range(3)])
    probabilities, embedding, tokens = explainer.session.encode_tokens(images)
    patches = np.arange(embedding[0, 0].size, dtype=np.int64)
    batch = TeamBatch(list(tokens), [2, 0, 1], [patches] * 3)
    scores = explainer.session.score_teams(batch).probabilities
    np.testing.assert_allclose(scores, probabilities[[2, 0, 1]], atol=SCORE_TOLERANCE)
    np.testing.assert_array_equal(explainer.session.encode(images)[0], probabilities)


@pytest.mark.parametrize("share", [0.5, 0.3])
@pytest.mark.parametrize("estimator", ["teams", "teams-dropped", "teams-difference", "teams-fit"])
def test_an_explanation_asks_for_each_team(
    explainer: Explainer, estimator: str, share: float
) -> None:
    """With a share of 0.3 the teams and their complements differ in size: two sorts of batches."""
    image = pixels(explainer, 5)
    result = explainer.explain(image, [1, 3], estimator=estimator, team_share=share)
    assert result.settings["hidden"] == "tokens"
    _, _, (tokens,) = explainer.session.encode_tokens(image[None])
    kept, dropped = (
        np.array([slow_scores(tokens, team, explainer.session)[[1, 3]] for team in teams]).T
        for teams in (
            make_teams(result.masks, share),
            1 - make_teams(result.masks, share),
        )
    )
    expected = {"teams": kept, "teams-dropped": -dropped}.get(estimator, kept - dropped)
    np.testing.assert_allclose(result.impacts, expected, atol=SCORE_TOLERANCE)


def test_rows_of_many_pictures_share_batches(explainer: Explainer) -> None:
    pictures = [random_picture(seed) for seed in range(7)]
    alone = [explainer.explain(p, "top2", preset="balanced") for p in pictures]
    packed = list(explainer.explain_many(pictures, "top2", preset="balanced"))
    for one, other in zip(alone, packed, strict=True):
        np.testing.assert_allclose(one.impacts, other.impacts, atol=SCORE_TOLERANCE)
        np.testing.assert_allclose(one.saliency, other.saliency, atol=10 * SCORE_TOLERANCE)


def test_every_sort_of_row_at_once(explainer: Explainer) -> None:
    """Tokens, pixels on three grids, and teams of two sizes: each is what it is alone."""
    asked = (
        {},
        {"preset": "quick"},
        {"method": "rise", "mask_count": 9},
        {"preset": "balanced", "team_share": 0.3},
        {"method": "occlusion", "window": 8, "step": 8},
        {"estimator": "teams-fit", "hidden": "pixels"},
        {"method": "random-cx", "mask_count": 5, "estimator": "teams"},
        {"preset": "balanced"},
    )
    alone = [explainer.explain(random_picture(i), **asked[i % 8]) for i in range(16)]
    requests = (explainer.request(random_picture(i), **asked[i % 8]) for i in range(16))
    for one, other in zip(alone, explainer.explain_requests(requests), strict=True):
        assert not isinstance(other, Exception), other
        np.testing.assert_allclose(one.impacts, other.impacts, atol=SCORE_TOLERANCE)
    assert alone[6].settings["hidden"] == "pixels"  # its masks are on a grid of their own


def test_token_teams_know_no_chance(explainer: Explainer) -> None:
    one, other = (explainer.explain(random_picture(1), preset="quick", seed=s) for s in (0, 1))
    np.testing.assert_array_equal(one.saliency, other.saliency)


def test_a_method_off_the_patch_grid_has_no_tokens(explainer: Explainer) -> None:
    with pytest.raises(InputError, match="not on the patch grid"):
        explainer.explain(
            random_picture(1),
            method="random-cx",
            mask_count=5,
            estimator="teams",
            hidden="tokens",
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_of_teams_that_does_not_fit_is_refused(tmp_path: Path, engine: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    other = write_tiny_bundle(tmp_path / "a", teams=True)
    bundle = write_tiny_bundle(tmp_path / "b")
    (bundle.path / "teams.onnx").write_bytes(other.teams_path.read_bytes())
    files = {**bundle.manifest.files, "teams.onnx": other.manifest.files["teams.onnx"]}
    write_manifest(bundle.path, replace(bundle.manifest, token_grid=(4, 4), files=files))
    with pytest.raises(BundleError, match="tokens"):
        vitcx.load(bundle.path, engine=engine)
