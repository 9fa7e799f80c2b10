"""Teams of tokens: which models have them, and the graph that scores them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from tests.export import tiny
from vitcx.cli import main
from vitcx.export import export_model
from vitcx.export.graph import team_graph
from vitcx.export.graph.shared_weights import share_weights
from vitcx.export.graph.to_onnx import save_graph
from vitcx.export.graph.tokens import NoTeams, Teams, find_teams, plain_features
from vitcx.export.precision.formats import AVAILABLE
from vitcx.export.precision.reduced import write_reduced
from vitcx.export.timm_import import import_timm
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.errors import BundleError, InputError

_SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 64, "num_classes": 7}
# Beside those of `tiny`: positions that blocks are told, each in its own way.
POSITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", _SMALL),
    "beit_shared": (
        "beit_base_patch16_224",
        {**_SMALL, "use_shared_rel_pos_bias": True, "use_rel_pos_bias": False},
    ),
    "eva02": ("eva02_tiny_patch14_224", {**_SMALL, "img_size": 56}),
    "dinov3": ("vit_small_patch16_dinov3", _SMALL),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", _SMALL),
    "relative": ("vit_relpos_base_patch16_clsgap_224", _SMALL),
    "relative_shared": ("vit_srelpos_small_patch16_224", _SMALL),
    # Two blocks before the class attention, which is in what follows them.
    "cait": ("cait_xxs24_224", _SMALL),
}
WITH_TEAMS = ("vit", "deit_distilled", "deit3", "vit_registers", "vit_pooled", *POSITIONS)
# Of float32: the same products in another order.
ROUNDING = 2e-6


def make(family: str) -> tuple[nn.Module, tuple[int, int]]:
    """A model and its input size."""
    if family in tiny.FAMILIES:
        model = tiny.make(family)
    else:
        name, arguments = POSITIONS[family]
        torch.manual_seed(0)
        model = import_timm().create_model(name, **arguments).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    anything: Any = model
    height, width = anything.patch_embed.img_size
    return model, (int(height), int(width))


def tokens_of(model: Any, images: torch.Tensor) -> torch.Tensor:
    """What the first block takes."""
    seen: list[torch.Tensor] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("family", WITH_TEAMS)
def test_all_patches_in_any_order_are_the_models_own_answer(family: str) -> None:
    model, size = make(family)
    teams = find_teams(model, (3, *size))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    tokens = tokens_of(model, images)
    assert tokens.shape[1:] == teams.token_shape
    count = teams.grid[0] * teams.grid[1]
    patches = torch.stack([torch.arange(count), torch.arange(count).flip(0), torch.arange(count)])
    with torch.no_grad():
        got = teams(tokens, torch.tensor([1, 0, 0]), patches)
        expected = model(images).softmax(1)
    torch.testing.assert_close(got, expected[[1, 0, 0]], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("family", ["vit", "deit_distilled", "vit_registers"])
def test_a_team_is_what_attention_sees_that_is_kept_from_the_other_patches(family: str) -> None:
    """Against the whole sequence with the patches left out masked in every attention."""
    anything, size = make(family)
    model: Any = anything
    teams = find_teams(model, (3, *size))
    tokens = tokens_of(model, torch.randn(1, 3, *size))
    patches = torch.tensor([[1, 5, 6, 11]])
    kept = torch.zeros(teams.token_shape[0], dtype=torch.bool)
    kept[: teams.prefix] = True
    kept[patches[0] + teams.prefix] = True
    with torch.no_grad():
        got = teams(tokens, torch.tensor([0]), patches)
        x = tokens
        for block in model.blocks:
            x = block(x, attn_mask=kept.expand(1, 1, len(kept), -1))
        expected = model.forward_head(model.norm(x)).softmax(1)  # of the prefix tokens
    torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDING)


class Conv(nn.Module):
    """A block whose patches see their neighbours, if there are as many as the grid has."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.near = nn.Conv2d(24, 24, 3, padding=1, groups=24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = x[:, 1:].transpose(1, 2)
        if patches.shape[2] == 16:
            patches = patches + self.near(patches.reshape(-1, 24, 4, 4)).flatten(2)
        made: torch.Tensor = self.block(torch.cat([x[:, :1], patches.transpose(1, 2)], dim=1))
        return made


class Placed(Conv):
    """A block that adds positions of its own, as many as it has tokens."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        self.position = nn.Parameter(torch.randn(1, 17, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.block(x + self.position[:, : x.shape[1]])
        return made


@pytest.mark.parametrize("kind", [Conv, Placed])
@pytest.mark.parametrize("place", [0, 1])
def test_a_block_that_knows_where_its_tokens_stand_has_no_teams(
    kind: type[Conv], place: int
) -> None:
    model: Any = tiny.make("vit")
    torch.manual_seed(1)
    model.blocks[place] = kind(model.blocks[place])
    with pytest.raises(NoTeams, match="in another order it gives another answer"):
        find_teams(model.eval(), (3, 64, 64))


@pytest.mark.parametrize("name", ["swin", "xcit_nano_12_p16_224"])
def test_families_that_need_every_patch_have_no_teams(name: str) -> None:
    if name == "swin":
        model = tiny.make(name)
    else:
        model = import_timm().create_model(name, img_size=64, num_classes=7, depth=2).eval()
    with pytest.raises(NoTeams):
        find_teams(model, (3, 64, 64))


def test_a_model_is_left_as_it_was() -> None:
    model, size = make("beit")
    before = [dict(vars(module)) for module in model.modules()]
    find_teams(model, (3, *size))
    for module, attributes in zip(model.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys()
        assert not module._forward_pre_hooks


def score(path: Path, tokens: np.ndarray, pictures: Any, patches: Any) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {
        "tokens": tokens,
        "pictures": np.asarray(pictures, np.int64),
        "patches": np.asarray(patches, np.int64),
    }
    (got,) = session.run(["probabilities"], feed)
    return np.asarray(got)


def encode(path: Path, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers: list[np.ndarray] = session.run(["probabilities", "tokens"], {"images": images})
    return answers


def pictures_of(bundle: Bundle, count: int) -> np.ndarray:
    size = bundle.manifest.input_size
    return np.random.default_rng(2).standard_normal((count, 3, *size), dtype=np.float32)


@pytest.fixture(scope="module")
def beit_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Bundle]:
    """Relative positions: the family whose blocks are told most."""
    model, _ = make("beit")
    return model, export_model(model, tmp_path_factory.mktemp("beit") / "bundle", teams=True)


@pytest.mark.parametrize(("count", "rows", "kept"), [(1, 1, 1), (4, 2, 7), (2, 9, 16)])
def test_the_graph_takes_any_pictures_rows_and_number_of_patches(
    beit_bundle: tuple[nn.Module, Bundle], count: int, rows: int, kept: int
) -> None:
    model, bundle = beit_bundle
    assert bundle.manifest.token_grid == (4, 4)
    whole, tokens = encode(bundle.model_path, pictures_of(bundle, count))
    rng = np.random.default_rng(rows)
    pictures = rng.integers(count, size=rows)
    patches = np.stack([rng.permutation(16)[:kept] for _ in range(rows)])
    got = score(bundle.teams_path, tokens, pictures, patches)
    teams = find_teams(model, (3, 64, 64))
    with torch.no_grad():
        for row in range(rows):
            alone = plain_features(
                teams, torch.from_numpy(tokens[pictures[row]]), torch.from_numpy(patches[row])
            )
            expected = teams.logits(alone[None]).softmax(1).numpy()
            np.testing.assert_allclose(got[row], expected[0], atol=ROUNDING)
    if kept == 16:
        np.testing.assert_allclose(got, whole[pictures], atol=ROUNDING)


def test_every_patch_in_order_is_the_graphs_own_answer(vit_bundle: Bundle) -> None:
    whole, tokens = encode(vit_bundle.model_path, pictures_of(vit_bundle, 3))
    every = np.tile(np.arange(16), (3, 1))
    got = score(vit_bundle.teams_path, tokens, [0, 1, 2], every)
    np.testing.assert_allclose(got, whole, atol=ROUNDING)
    parity = vit_bundle.manifest.parity
    assert parity["team_rows"] == 9
    assert 0 <= parity["teams_probabilities_max_abs"] <= 1e-4
    assert 0 <= parity["tokens_rms_relative"] <= 1e-4


def test_each_weight_is_stored_once(vit_bundle: Bundle) -> None:
    lists = []
    for path in (vit_bundle.model_path, vit_bundle.teams_path):
        graph: Any = ir.load(path).graph
        tensors = [weight.const_value for weight in graph.initializers.values()]
        lists.append({t.offset: t for t in tensors if isinstance(t, ir.ExternalTensor)})
        assert all(t.nbytes < 1024 for t in tensors if not isinstance(t, ir.ExternalTensor))
        onnx.checker.check_model(path, full_check=True)
    model, teams = lists
    assert len(teams.keys() & model.keys()) >= len(teams) - 1
    every = {**model, **teams}
    assert len({hashlib.sha256(t.tobytes()).digest() for t in every.values()}) == len(every)
    stored = (vit_bundle.path / "weights.data").stat().st_size
    assert stored <= sum(t.nbytes + 63 for t in every.values())


def test_weights_of_a_file_are_shared_again_and_the_old_file_goes(
    vit_bundle: Bundle, tmp_path: Path
) -> None:
    graph = ir.load(vit_bundle.model_path)
    ir.save(graph, tmp_path / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=0)
    share_weights(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "weights.data"]
    images = pictures_of(vit_bundle, 2)
    for got, expected in zip(
        encode(tmp_path / "model.onnx", images),
        encode(vit_bundle.model_path, images),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)


def test_a_saved_graph_needs_no_file_of_another_folder(vit_bundle: Bundle, tmp_path: Path) -> None:
    save_graph(ir.load(vit_bundle.model_path), tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    encode(tmp_path / "model.onnx", pictures_of(vit_bundle, 1))


@pytest.mark.parametrize(("precision", "off"), [("fp16", 1e-2), ("bf16", 5e-2), ("int8", 0.3)])
def test_a_reduced_precision_scores_teams_in_it(
    precision: str, off: float, vit_bundle: Bundle, tmp_path: Path
) -> None:
    folder, scratch = tmp_path / "new", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    runnable = write_reduced(AVAILABLE[precision], vit_bundle.path, folder, scratch)
    names = ["encoder.onnx", "model.onnx", "teams.onnx", "weights.data"]
    assert sorted(p.name for p in folder.iterdir()) == names
    exact = sum(p.stat().st_size for p in vit_bundle.path.iterdir())
    assert sum(p.stat().st_size for p in folder.iterdir()) < 2.5 * exact
    images = pictures_of(vit_bundle, 2)
    _, tokens = encode(vit_bundle.model_path, images)
    np.testing.assert_array_equal(encode(folder / "encoder.onnx", images)[1], tokens)
    patches = [[0, 3, 5, 9], [1, 2, 12, 15]]
    expected = score(vit_bundle.teams_path, tokens, [0, 1], patches)
    got = score(runnable / "teams.onnx", tokens, [0, 1], patches)
    assert 0 < np.abs(got - expected).max() < off


@pytest.mark.slow
def test_a_graph_that_takes_other_patches_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shifted(Teams):
        def forward(
            self, tokens: torch.Tensor, pictures: torch.Tensor, patches: torch.Tensor
        ) -> torch.Tensor:
            return super().forward(tokens, pictures, (patches + 1) % 16)

    write = team_graph.write_teams_onnx

    def write_wrong(teams: Teams, *arguments: Any) -> None:
        teams.__class__ = Shifted
        write(teams, *arguments)
        teams.__class__ = Teams

    monkeypatch.setattr(team_graph, "write_teams_onnx", write_wrong)
    with pytest.raises(BundleError, match="with some patches left out"):
        export_model(tiny.make("vit"), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_without_teams_a_bundle_is_one_graph_in_one_file(tmp_path: Path) -> None:
    bundle = export_model(tiny.make("vit"), tmp_path / "bundle", teams=False)
    assert not bundle.has_teams
    assert sorted(p.name for p in bundle.path.iterdir()) == [
        "check.npz",
        "manifest.json",
        "model.onnx",
    ]
    outputs = onnx.load(bundle.model_path).graph.output
    assert [output.name for output in outputs] == ["probabilities", "embedding"]
    assert "token_grid" not in (bundle.path / "manifest.json").read_text()


@pytest.mark.slow
def test_a_model_without_teams_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "this model needs every patch in place"
    with pytest.raises(InputError, match=rf"{line}.*asked in pixels; leave out --teams"):
        export_model(tiny.make("swin"), tmp_path / "bundle", teams=True)
    assert list(tmp_path.iterdir()) == []
    from safetensors.torch import save_file

    def refuse(*_: Any) -> None:
        raise NoTeams("for a reason")

    monkeypatch.setattr(team_graph, "find_teams", refuse)
    weights = import_timm().create_model("test_vit", num_classes=2).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    given = ["--checkpoint", str(tmp_path / "weights.safetensors"), "--img-size", "64"]
    assert main(["export", "test_vit", *given, "--out", str(tmp_path / "a")]) == 0
    assert f"{line}: teams are asked in pixels\n" in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["openvino", "tensorrt_rtx"])
def test_other_engines_take_both_graphs(engine: str, vit_bundle: Bundle) -> None:
    library: Any = pytest.importorskip(engine)
    paths = (vit_bundle.model_path, vit_bundle.teams_path)
    if engine == "tensorrt_rtx":
        logger = library.Logger(library.Logger.ERROR)
        for path in paths:
            network = library.Builder(logger).create_network(0)
            parser = library.OnnxParser(network, logger)
            assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
        return
    core = library.Core()
    model, teams = (core.compile_model(core.read_model(str(path)), "CPU") for path in paths)
    images = pictures_of(vit_bundle, 2)
    answers = model({"images": images})
    expected = encode(vit_bundle.model_path, images)
    np.testing.assert_allclose(answers["tokens"], expected[1], atol=2e-5)
    patches = np.array([[0, 3, 5, 9], [1, 2, 12, 15]])
    got = teams({"tokens": expected[1], "pictures": np.array([1, 0]), "patches": patches})
    mine = score(vit_bundle.teams_path, expected[1], [1, 0], patches)
    np.testing.assert_allclose(got["probabilities"], mine, atol=ROUNDING)
