"""Every estimator against the slow definitions, and the records of the registry."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.oracle import teams as oracle
from tests.runtime.numpy_session import numpy_explainer, picture
from vitcx.kernels.host.blend import DROPPED, KEPT
from vitcx.kernels.host.philox import standard_normals
from vitcx.kernels.team_size import team_size
from vitcx.runtime.errors import InputError
from vitcx.runtime.method.estimators.fit import fit_map
from vitcx.runtime.method.estimators.registry import ESTIMATORS
from vitcx.runtime.method.estimators.teams import make_teams
from vitcx.runtime.method.registry import METHODS, complete_settings
from vitcx.runtime.presets import PRESET_NAMES, PRESETS
from vitcx.runtime.settings import (
    SETTING_NAMES,
    EstimatorName,
    MethodName,
    Settings,
    SettingValues,
)

GRID, SIZE = (4, 4), (16, 16)
# Scores are float32 of order 1, and the map a quotient of sums of a dozen of them.
MAP_TOLERANCE = 2e-6
# The two forms of the fit are solved in float64; the map is given in float32.
FIT_TOLERANCE = 1e-5


def test_the_names_are_those_of_the_records():
    assert tuple(METHODS) == get_args(MethodName)
    assert tuple(ESTIMATORS) == get_args(EstimatorName)
    assert tuple(PRESETS) == PRESET_NAMES
    assert set(SettingValues.__annotations__) == {*SETTING_NAMES, "preset"}
    assert set(get_type_hints(Settings)) == set(SETTING_NAMES)


def test_what_a_record_uses_are_settings():
    for record in (*METHODS.values(), *ESTIMATORS.values()):
        assert record.uses <= set(SETTING_NAMES), record.name


@given(
    masks=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    share=st.sampled_from([0.05, 1 / 3, 0.5, 2 / 3, 0.95]),
    levels=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@hypothesis_settings(max_examples=60)
def test_teams_are_the_highest_patches(masks, grid, share, levels, seed):
    """Few levels make many ties."""
    drawn = np.random.default_rng(seed).integers(0, levels, (masks, *grid)).astype(np.float32)
    teams = make_teams(drawn, share)
    assert (teams.sum(axis=(1, 2)) == team_size(grid[0] * grid[1], share)).all()
    if grid != (1, 1):
        for mask, team in zip(drawn, teams, strict=True):
            np.testing.assert_array_equal(team, oracle.team_of(mask, share))


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_constant_mask_keeps_the_first_half(level):
    (team,) = make_teams(np.full((1, 2, 3), level, np.float32), 0.5)
    np.testing.assert_array_equal(team, [[1, 1, 1], [0, 0, 0]])


def test_a_mask_that_is_nearly_everywhere_zero_still_keeps_half():
    mask = np.zeros((1, 4, 4), np.float32)
    mask[0, 3, 3] = 1
    (team,) = make_teams(mask, 0.5)
    assert team.sum() == 8
    assert team[3, 3] == 1


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@pytest.mark.parametrize("estimator", ["teams", "teams-dropped", "teams-difference", "teams-fit"])
def test_whole_explanations_are_the_oracles(estimator, noise_std):
    with numpy_explainer(GRID, SIZE) as explainer:
        image = picture(SIZE)
        result = explainer.explain(
            image, [0, 2], estimator=estimator, noise_std=noise_std, seed=7, hidden="pixels"
        )
        session = explainer.session
        teams = [oracle.team_of(mask, 0.5) for mask in result.masks]
        scores = {KEPT: [], DROPPED: []}
        for k, team in enumerate(teams):
            normals = standard_normals(7, k, image.shape)
            for kind, part in ((KEPT, team), (DROPPED, 1 - team)):
                row = oracle.shown(image, part, normals, noise_std)
                scores[kind].append(session.forward(row[None])[0][0][[0, 2]])
    kept, dropped = (np.array(scores[kind]).T for kind in (KEPT, DROPPED))
    impacts = {"teams": kept, "teams-dropped": -dropped}.get(estimator, kept - dropped)
    np.testing.assert_allclose(result.impacts, impacts, atol=MAP_TOLERANCE)
    for t in range(2):
        if estimator == "teams-fit":
            low = oracle.fitted(np.array(teams), result.masks, kept[t], dropped[t], 1.0, 0.75)
            expected = oracle.upsampled(low, SIZE)
            np.testing.assert_allclose(result.saliency[t], expected, atol=FIT_TOLERANCE)
        else:
            expected = oracle.summed(result.masks, impacts[t], SIZE)
            np.testing.assert_allclose(result.saliency[t], expected, atol=MAP_TOLERANCE)
    rows = 1 if estimator in ("teams", "teams-dropped") else 2
    assert result.settings["forward_passes"] == rows * len(teams) + 1
    assert result.settings["hidden"] == "pixels"


@given(
    count=st.integers(1, 12),
    grid=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    share=st.sampled_from([0.3, 0.5]),
    strength=st.sampled_from([0.1, 1.0, 10.0]),
    likeness=st.sampled_from([0.0, 0.5, 0.9]),
    seed=st.integers(0, 1000),
)
@hypothesis_settings(max_examples=40)
def test_the_dual_fit_is_the_primal(count, grid, share, strength, likeness, seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((count, *grid), dtype=np.float32)
    teams = make_teams(masks, share)
    kept, dropped = rng.random((2, count, 1)).astype(np.float32)
    chosen = Settings(prior_strength=strength, prior_likeness=likeness)
    (found,) = fit_map(teams, masks, {KEPT: kept, DROPPED: dropped}, chosen)
    expected = oracle.fitted(teams, masks, kept[:, 0], dropped[:, 0], strength, likeness)
    np.testing.assert_allclose(found, expected, atol=FIT_TOLERANCE * max(1, 1 / strength))


def test_equal_teams_give_equal_effects_whatever_their_order():
    """The map does not change when masks are permuted."""
    rng = np.random.default_rng(3)
    masks = rng.random((6, 3, 3), dtype=np.float32)
    teams = make_teams(masks, 0.5)
    scores = {kind: rng.random((6, 2)).astype(np.float32) for kind in (KEPT, DROPPED)}
    order = rng.permutation(6)
    reordered = {kind: s[order] for kind, s in scores.items()}
    there = fit_map(teams[order], masks[order], reordered, Settings())
    np.testing.assert_allclose(there, fit_map(teams, masks, scores, Settings()), atol=1e-6)


def test_patches_that_the_masks_show_alike_are_credited_alike():
    """Two patches far apart with the same values in every mask: with likeness alone, one effect."""
    rng = np.random.default_rng(4)
    masks = rng.random((9, 5, 5), dtype=np.float32)
    masks[:, 4, 4] = masks[:, 0, 0]
    teams = make_teams(masks, 0.5)
    scores = {kind: rng.random((9, 1)).astype(np.float32) for kind in (KEPT, DROPPED)}
    (alike,) = fit_map(teams, masks, scores, Settings(prior_likeness=1.0))
    assert alike[0, 0] == pytest.approx(alike[4, 4], abs=1e-6)
    (near,) = fit_map(teams, masks, scores, Settings(prior_likeness=0.0))
    assert abs(near[0, 0] - near[4, 4]) > 1e-3


def test_masks_that_are_the_same_everywhere_leave_the_fit_to_distance():
    teams = make_teams(np.random.default_rng(5).random((3, 4, 4), dtype=np.float32), 0.5)
    flat = np.full((3, 4, 4), 0.5, np.float32)
    scores = {kind: np.full((3, 1), v, np.float32) for kind, v in ((KEPT, 0.9), (DROPPED, 0.2))}
    (found,) = fit_map(teams, flat, scores, Settings())
    (expected,) = fit_map(teams, flat, scores, Settings(prior_likeness=0.0))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_without_noise_the_seed_changes_nothing():
    with numpy_explainer() as explainer:
        maps = [
            explainer.explain(picture(SIZE), preset="balanced", seed=seed, hidden="pixels").saliency
            for seed in (0, 1)
        ]
    np.testing.assert_array_equal(*maps)


def test_one_mask_is_enough():
    """δ = 1 merges all masks into one cluster or few."""
    with numpy_explainer() as explainer:
        for estimator in ("teams", "teams-difference", "teams-fit"):
            result = explainer.explain(picture(SIZE), estimator=estimator, distance_threshold=1.0)
            assert np.isfinite(result.saliency).all()


def test_an_embedding_without_masks_gives_a_flat_map():
    with numpy_explainer() as explainer:
        for estimator in ("teams", "teams-fit"):
            result = explainer.explain(np.zeros((3, *SIZE), np.float32), estimator=estimator)
            assert len(result.masks) == 0
            assert (result.saliency == 0).all()


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_presets_are_settings_that_single_ones_override(name):
    chosen = complete_settings({"preset": name}, 0.1)
    for setting, value in PRESETS[name].settings.items():
        assert getattr(chosen, setting) == value
    assert complete_settings({"preset": name, "seed": 3}, 0.1).seed == 3
    if name == "paper":
        assert chosen == complete_settings({}, 0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "fastest"}, "preset is 'fastest', not one of paper, quick"),
        ({"estimator": "teams", "debias": False}, "debias has no meaning for the estimator"),
        ({"prior_strength": 2.0}, "prior_strength has no meaning.*teams-fit"),
        ({"estimator": "teams-fit", "coverage_correction": False}, "coverage_correction has no"),
        ({"hidden": "tokens"}, "hidden has no meaning for the estimator 'paper'"),
        ({"estimator": "teams", "hidden": "tokens", "noise_std": 0.2}, "noise_std has no meaning"),
        ({"noise_std": 1e39}, "noise_std is 1e"),
        ({"noise_std": float("nan")}, "noise_std is nan"),
        ({"noise_std": 10**400}, "noise_std is inf"),
        ({"seed": 10**400}, "seed is a number of 1329 bits"),
        ({"seed": True}, "seed is True"),
        ({"debias": 1}, "debias is 1: give True or False"),
        ({"team_share": 1.0}, "team_share is 1"),
        ({"colour": 1}, "no setting called colour"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        complete_settings(given, 0.1)


def test_numpys_numbers_are_numbers():
    chosen = Settings(np.float32(0.25), seed=np.int64(3), debias=np.bool_(False))
    assert (chosen.distance_threshold, chosen.seed, chosen.debias) == (0.25, 3, False)
    assert type(chosen.seed) is int
    assert type(chosen.debias) is bool


@pytest.mark.parametrize("estimator", ["paper", "teams-difference", "teams-fit"])
def test_the_contrast_of_two_classes_is_the_map_of_their_difference(estimator):
    """Asked of a model whose second class scores what the first does more than the second."""

    def forward(images):
        probabilities, embedding = plain(images)
        return np.stack([probabilities[:, 0] - probabilities[:, 1]] * 4, axis=1), embedding

    with numpy_explainer() as explainer:
        both = explainer.explain(picture(SIZE), [0, 1], estimator=estimator)
        plain = explainer.session.forward
        explainer.session.forward = forward
        difference = explainer.explain(picture(SIZE), [0], estimator=estimator)
    np.testing.assert_allclose(both.contrast(), difference.saliency[0], atol=5 * MAP_TOLERANCE)
    np.testing.assert_array_equal(both.contrast(1, 0), -both.contrast(0, 1))


def test_tokens_that_the_engine_has_not_are_refused():
    with numpy_explainer() as explainer, pytest.raises(InputError, match="scores no tokens"):
        explainer.explain(picture(SIZE), estimator="teams", hidden="tokens")
