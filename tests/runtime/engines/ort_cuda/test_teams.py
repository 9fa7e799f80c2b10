"""Teams of tokens by the CUDA session, on ONNX Runtime's CPU provider (see test_session)."""

import numpy as np
import pytest

from tests.kernels.conftest import shim  # noqa: F401
from tests.kernels.gpu import fake_cuda
from tests.runtime.engines.ort_cuda.test_session import HOST, PARITY, core, runs  # noqa: F401
from tests.tiny_bundle import SIZE, add_encoder, random_picture, write_tiny_bundle
from vitcx.runtime.engines.cpu.onnxruntime_session import OnnxRuntimeSession
from vitcx.runtime.engines.ort_cuda import bound_bundle
from vitcx.runtime.engines.ort_cuda.session import OnnxRuntimeCudaSession
from vitcx.runtime.engines.registry import open_session
from vitcx.runtime.engines.session import TeamBatch
from vitcx.runtime.errors import BundleError, EngineError
from vitcx.runtime.explainer import Explainer

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

PATCHES = 16
BATCH = 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "teams", teams=True)


@pytest.fixture(scope="module")
def reference(bundle):
    with OnnxRuntimeSession(bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def session(core, bundle):  # noqa: F811
    with OnnxRuntimeCudaSession(bundle, batch_size=BATCH, target=HOST) as opened:
        yield opened
    assert fake_cuda.Buffer.live == 0


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def team_batch(tokens, rows, size, seed=0):
    """Rows of random teams of some pictures."""
    rng = np.random.default_rng(seed)
    patches = [np.sort(rng.permutation(PATCHES)[:size]).astype(np.int64) for _ in range(rows)]
    return TeamBatch(list(tokens), list(rng.integers(0, len(tokens), rows)), patches)


def check_teams(session, reference, sizes=(8, 1, 5, 8, 15, 16, 8)):
    given = images(5)
    expected = reference.encode_tokens(given)
    for ours, theirs in zip(session.encode_tokens(given), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=PARITY)
    seed = 0
    for size in sizes:  # a short batch leaves what it does not fill alone
        for rows in (BATCH, 1, 5, 3):
            batch = team_batch(expected[2], rows, size, seed)
            ours, theirs = session.score_teams(batch), reference.score_teams(batch)
            assert ours.probabilities.shape == theirs.probabilities.shape
            np.testing.assert_allclose(
                ours.probabilities, theirs.probabilities, rtol=0, atol=PARITY
            )
            assert ours.forward_seconds > 0
            seed += 1


def test_teams_are_scored_as_by_the_cpu_engine(session, reference):
    assert session.scores_teams
    check_teams(session, reference)


def test_a_version_that_records_none_scores_them_too(core, bundle, reference, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ort, "__version__", "1.29.0")
    with OnnxRuntimeCudaSession(bundle, batch_size=BATCH, target=HOST) as session:
        check_teams(session, reference, sizes=(8, 5))


def test_teams_of_half_go_by_the_smallest_recorded_pass(core, bundle, reference, runs):  # noqa: F811
    tokens = reference.encode_tokens(images(2))[2]
    with OnnxRuntimeCudaSession(bundle, batch_size=BATCH, target=HOST) as session:
        opening = len(runs)
        for rows in (1, 2, 3, 4, 5, 8):
            session.score_teams(team_batch(tokens, rows, PATCHES // 2))
        session.score_teams(team_batch(tokens, 3, 5))  # another size: by itself, and no more rows
        found = [(graph, rows) for graph, _, rows in runs[opening:]]
    assert found == [("1", 2)] * 2 + [("2", 4)] * 2 + [("3", 8)] * 2 + [("-1", 3)]


def test_pixels_and_teams_take_turns(session, reference):
    batch = team_batch(reference.encode_tokens(images(2))[2], 5, 8)
    for _ in range(2):  # they share what the probabilities are written to
        for ours, theirs in (
            (session.score_teams(batch), reference.score_teams(batch)),
            (session.predict(images(9)), reference.predict(images(9))),
        ):
            found, expected = (getattr(one, "probabilities", one) for one in (ours, theirs))
            np.testing.assert_allclose(found, expected, rtol=0, atol=PARITY)


def test_explanations_by_teams_are_those_of_the_cpu_engine(session, reference, bundle):
    pictures = [random_picture(seed) for seed in range(4)]
    ours, theirs = (Explainer(bundle, engine) for engine in (session, reference))
    for settings in (
        {"preset": "quick"},
        {"preset": "balanced"},
        {"estimator": "teams-difference", "team_share": 0.3},
        {"estimator": "teams", "hidden": "pixels"},
    ):
        found = ours.explain_many(pictures, "top2", **settings)
        expected = theirs.explain_many(pictures, "top2", **settings)
        for mine, other in zip(found, expected, strict=True):
            assert mine.settings["hidden"] == settings.get("hidden", "tokens")
            for name in ("probabilities", "masks", "impacts", "saliency"):
                np.testing.assert_allclose(
                    getattr(mine, name), getattr(other, name), rtol=0, atol=PARITY
                )


def test_an_encoder_of_its_own_gives_the_tokens(core, bundle, tmp_path):  # noqa: F811
    mixed = add_encoder(bundle, write_tiny_bundle(tmp_path / "other", seed=1, teams=True))
    with (
        OnnxRuntimeSession(mixed, threads=1) as cpu,
        OnnxRuntimeCudaSession(mixed, batch_size=BATCH, target=HOST) as session,
    ):
        check_teams(session, cpu, sizes=(8, 5))


def test_an_encoder_whose_tokens_do_not_fit_is_refused(core, bundle, monkeypatch):  # noqa: F811
    monkeypatch.setattr(bound_bundle, "token_shape_of", lambda graph, interface: (17, 5))
    with pytest.raises(BundleError, match=r"gives tokens \(17, 5\) .* takes \(17, 6\)"):
        OnnxRuntimeCudaSession(bundle, batch_size=BATCH, target=HOST)
    assert fake_cuda.Buffer.live == 0


def test_a_bundle_without_the_graph_scores_none(core, tmp_path):  # noqa: F811
    plain = write_tiny_bundle(tmp_path / "plain")
    with OnnxRuntimeCudaSession(plain, batch_size=BATCH, target=HOST) as session:
        assert not session.scores_teams
        for call in (
            lambda: session.encode_tokens(images(1)),
            lambda: session.score_teams(TeamBatch()),
        ):
            with pytest.raises(EngineError, match="scores no teams"):
                call()


@pytest.mark.gpu
def test_on_a_gpu(bundle, reference):
    """Parity, recording and short batches, with the CUDA provider itself."""
    try:
        session = open_session(bundle, "cuda", batch_size=BATCH)
    except EngineError as error:
        pytest.skip(str(error))
    with session:
        check_teams(session, reference)
