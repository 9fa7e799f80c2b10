"""Teams of tokens on TensorRT with no GPU: on `fake_cuda` and the stand-in that computes."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.kernels.conftest import shim  # noqa: F401
from tests.kernels.gpu import fake_cuda
from tests.runtime.engines.tensorrt import recording_tensorrt
from tests.tiny_bundle import CHANNELS, SIZE, add_encoder, random_picture, write_tiny_bundle
from vitcx.runtime.engines.cpu.onnxruntime_session import OnnxRuntimeSession
from vitcx.runtime.engines.session import TeamBatch
from vitcx.runtime.engines.tensorrt import library as tensorrt_library
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.builder import build_plan
from vitcx.runtime.engines.tensorrt.plan import plan_graphs
from vitcx.runtime.engines.tensorrt.profiles import TEAMS, Shapes
from vitcx.runtime.engines.tensorrt.session import TensorRTSession
from vitcx.runtime.errors import BundleError, EngineError, InputError
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.manifest import TEAMS_NAME

# The same graph by the same library; batches of other sizes sum in another order.
TOLERANCE = 1e-5
PATCHES = 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    pytest.importorskip("onnx")
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle", teams=True)


@pytest.fixture
def core(monkeypatch, shim):  # noqa: F811
    yield fake_cuda.install(monkeypatch, shim)
    tensorrt_library.find_library.cache_clear()
    assert fake_cuda.Buffer.live == 0


@pytest.fixture
def record(core, monkeypatch, tmp_path):
    return recording_tensorrt.install(monkeypatch, tmp_path)


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def team_batch(tokens, rows, size, seed=0):
    """Rows of random teams of some pictures."""
    rng = np.random.default_rng(seed)
    patches = [np.sort(rng.permutation(PATCHES)[:size]).astype(np.int64) for _ in range(rows)]
    return TeamBatch(list(tokens), list(rng.integers(0, len(tokens), rows)), patches)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_teams_are_scored_as_by_the_cpu_engine(flavour, core, bundle, monkeypatch, tmp_path):
    recording_tensorrt.install(monkeypatch, tmp_path, flavour)
    given = images(5)
    with (
        OnnxRuntimeSession(bundle) as cpu,
        TensorRTSession(bundle, flavour, batch_size=8, encode_images=3) as session,
    ):
        assert session.scores_teams
        expected = cpu.encode_tokens(given)
        for ours, theirs in zip(session.encode_tokens(given), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(session.encode(given)[0], session.encode_tokens(given)[0])
        seed = 0
        for size in (8, 1, 5, 8, 15, 16, 8):  # a short batch leaves what it does not fill alone
            for rows in (8, 1, 5, 3):
                batch = team_batch(expected[2], rows, size, seed)
                ours, theirs = session.score_teams(batch), cpu.score_teams(batch)
                np.testing.assert_allclose(
                    ours.probabilities, theirs.probabilities, rtol=0, atol=TOLERANCE
                )
                assert ours.forward_seconds > 0
                seed += 1


def test_teams_of_half_go_by_the_smallest_recorded_pass(bundle, record):
    with TensorRTSession(bundle, batch_size=8) as session:
        tokens = session.encode_tokens(images(2))[2]
        graphs = fake_cuda.Graph.made[-3:]  # of 8, 4 and 2 rows
        before = [graph.launches for graph in graphs]
        for rows in (1, 2, 3, 4, 5, 8):
            session.score_teams(team_batch(tokens, rows, PATCHES // 2))
        launches = [graph.launches - known for graph, known in zip(graphs, before, strict=True)]
        assert launches == [2, 2, 2]
        known = len(record.passes)
        session.score_teams(team_batch(tokens, 3, 5))  # another size: by itself, and no more rows
        ((context, rows, *_),) = record.passes[known:]
        assert rows == 3
        assert context.shapes["patches"] == (3, 5)
        assert len(fake_cuda.Graph.made) == 6
    assert [shapes.profiles for shapes in record.built] == [
        ("encode", "score", "short"),
        ("teams",),
    ]


def test_explanations_by_teams_are_those_of_the_cpu_engine(bundle, record):
    pictures = [random_picture(seed) for seed in range(5)]
    for settings in (
        {"preset": "quick"},
        {"preset": "balanced"},
        {"estimator": "teams-difference", "team_share": 0.3},
    ):
        with Explainer(bundle, OnnxRuntimeSession(bundle)) as explainer:
            expected = list(explainer.explain_many(pictures, "top2", **settings))
        with Explainer(bundle, TensorRTSession(bundle, batch_size=8)) as explainer:
            found = list(explainer.explain_many(pictures, "top2", **settings))
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.settings["hidden"] == "tokens"
            for name in ("probabilities", "masks", "impacts", "saliency"):
                np.testing.assert_allclose(
                    getattr(ours, name), getattr(theirs, name), rtol=0, atol=TOLERANCE
                )


def test_version_8_has_no_indices_of_64_bits_and_takes_pixels(bundle, core, monkeypatch, tmp_path):
    recording_tensorrt.install(monkeypatch, tmp_path, old=True)
    with Explainer(bundle, TensorRTSession(bundle, batch_size=8)) as explainer:
        assert not explainer.session.scores_teams
        found = explainer.explain(random_picture(1), preset="quick")
        assert found.settings["hidden"] == "pixels"
        with pytest.raises(InputError, match="scores no tokens"):
            explainer.explain(random_picture(1), preset="quick", hidden="tokens")
        for call in (
            lambda: explainer.session.encode_tokens(images(1)),
            lambda: explainer.session.score_teams(TeamBatch()),
        ):
            with pytest.raises(EngineError, match="scores no teams"):
                call()


def test_an_encoder_of_its_own_gives_the_tokens(bundle, record, tmp_path):
    """The graph that scores pixels gives tokens too, which nobody takes: no buffer for them."""
    other = write_tiny_bundle(tmp_path / "other", seed=1, teams=True)
    mixed = add_encoder(bundle, other)
    given = images(3)
    with OnnxRuntimeSession(mixed) as cpu, TensorRTSession(mixed, batch_size=8) as session:
        expected = cpu.encode_tokens(given)
        for ours, theirs in zip(session.encode_tokens(given), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
        batch = team_batch(expected[2], 7, 8)
        np.testing.assert_allclose(
            session.score_teams(batch).probabilities,
            cpu.score_teams(batch).probabilities,
            rtol=0,
            atol=TOLERANCE,
        )
    assert [shapes.profiles for shapes in record.built] == [
        ("score", "short"),
        ("encode",),
        ("teams",),
    ]
    scoring = next(context for context in record.contexts if len(context.shapes) == 1)
    assert "tokens" not in scoring.addresses


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([-1, 17, CHANNELS + 1], r"gives tokens \(17, 6\) .* takes \(17, 7\)"),
        ([-1, -1, CHANNELS], "must be known before"),
    ],
)
def test_tokens_of_another_shape_are_refused(sizes, message, bundle, record, monkeypatch):
    plain = recording_tensorrt.ICudaEngine.get_tensor_shape

    def shape(self, name):
        takes_teams = "patches" in self.inputs
        return tuple(sizes) if takes_teams and name == "tokens" else plain(self, name)

    monkeypatch.setattr(recording_tensorrt.ICudaEngine, "get_tensor_shape", shape)
    if sizes[1] > 0:
        record.changes = {}
        ranges = Shapes.ranges
        monkeypatch.setattr(
            recording_tensorrt.ICudaEngine,
            "get_tensor_profile_shape",
            lambda self, name, index: ranges(
                Shapes.of_session(8).only(TEAMS)
                if "patches" in self.inputs
                else Shapes.of_session(8),
                TEAMS if "patches" in self.inputs else ("encode", "score", "short")[index],
                bundle.manifest,
                tuple(sizes[1:]),
            )[name],
        )
    with pytest.raises(BundleError, match=message):
        TensorRTSession(bundle, batch_size=8)


def test_the_real_parser_and_builder_take_the_graph(bundle):
    """On a machine with no GPU: TensorRT-RTX builds ahead of time."""
    pytest.importorskip("tensorrt_rtx")
    tensorrt_library.find_library.cache_clear()
    library = tensorrt_library.find_library("tensorrt-rtx")
    graphs = plan_graphs(library, bundle, Shapes.of_session(8))
    assert [graph.graph_name for graph, _ in graphs] == ["model.onnx", TEAMS_NAME]
    for graph, shapes in graphs:
        built = build_plan(library, graph, shapes, BuildOptions(compute_capabilities=("8.9",)))
        assert struct.unpack_from("<Q", built.plan, 16) == (len(built.plan),)
        assert built.report.profiles == len(shapes.profiles)
