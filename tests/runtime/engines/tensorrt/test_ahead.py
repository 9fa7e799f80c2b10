"""Plans built ahead of time by the command line, and what it takes to bring one into a cache."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs the extra 'rtx'")
pytest.importorskip("onnx", reason="needs the extra 'export'")

from tests.tiny_bundle import add_encoder, write_tiny_bundle
from vitcx.cli import main
from vitcx.commands import export
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.tensorrt import plan as tensorrt_plan
from vitcx.runtime.engines.tensorrt.ahead import note_path
from vitcx.runtime.engines.tensorrt.build_options import BuildOptions
from vitcx.runtime.engines.tensorrt.library import find_library
from vitcx.runtime.engines.tensorrt.plan import PlanOrder, plan_for
from vitcx.runtime.engines.tensorrt.profiles import ENCODE, SCORE, Shapes

SHAPES = Shapes(encode_images=4, batch_size=4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitcx" / "plans"


@pytest.fixture
def built(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """A plan for two GPUs, and the digest that the command printed."""
    out = tmp_path / "made" / "tiny.plan"
    targets = ["--compute-capability", "8.9", "--compute-capability", "12.0"]
    assert main(["plan", "build", str(bundle.path), "--out", str(out), "--batch-size", "4",
                 *targets]) == 0  # fmt: skip
    said = capsys.readouterr()
    assert "for compute capability 8.9, 12.0" in said.out
    assert "no attention in the graph" in said.out
    (digest,) = re.findall(r"sha256 ([0-9a-f]{64})", said.out)
    return out, digest


def take(plan: Path, bundle: Bundle, digest: str) -> int:
    return main(["plan", "take", str(plan), "--bundle", str(bundle.path), "--sha256", digest])


def refuse(*arguments: Any) -> Any:
    raise AssertionError("built")


def test_a_note_tells_what_the_plan_is(built: tuple[Path, str], bundle: Bundle) -> None:
    plan, digest = built
    assert hashlib.sha256(note_path(plan).read_bytes()).hexdigest() == digest
    note = json.loads(note_path(plan).read_text())
    assert note["sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert [key["compute_capability"] for key in note["keys"]] == ["8.9", "12.0"]
    assert note["keys"][0]["files"] == dict(bundle.manifest.files)
    assert sorted(file.name for file in plan.parent.iterdir()) == ["tiny.plan", "tiny.plan.json"]


def test_what_was_taken_is_used_and_nothing_is_built(
    built: tuple[Path, str],
    bundle: Bundle,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan, digest = built
    assert not cache.exists()
    assert take(plan, bundle, digest) == 0
    assert "mask batches of up to 4, for compute capability 8.9, 12.0" in capsys.readouterr().out
    monkeypatch.setattr(tensorrt_plan, "build_plan", refuse)
    library = find_library("tensorrt-rtx")
    for gpu, capability in (("NVIDIA RTX 4090", "8.9"), ("NVIDIA RTX 5090", "12.0")):
        found = plan_for(PlanOrder(library, bundle, SHAPES, BuildOptions(), gpu, capability))
        assert found == plan.read_bytes()
    for shapes, options, capability in (
        (Shapes(4, 5), BuildOptions(), "8.9"),
        (SHAPES, BuildOptions(tf32=True), "8.9"),
        (SHAPES, BuildOptions(), "8.6"),
    ):
        with pytest.raises(AssertionError, match="built"):
            plan_for(PlanOrder(library, bundle, shapes, options, "a GPU", capability))


def test_an_encoder_of_its_own_has_a_plan_of_its_own(
    bundle: Bundle, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    mixed = add_encoder(bundle, write_tiny_bundle(tmp_path / "other", seed=1))
    out = tmp_path / "made" / "tiny.plan"
    assert main(["plan", "build", str(mixed.path), "--out", str(out), "--batch-size", "4",
                 "--compute-capability", "8.9"]) == 0  # fmt: skip
    digests = re.findall(r"sha256 ([0-9a-f]{64})", capsys.readouterr().out)
    plans = [out, out.with_name("tiny.encoder.plan")]
    for plan, digest in zip(plans, digests, strict=True):
        assert take(plan, mixed, digest) == 0
    said = capsys.readouterr().out
    assert "mask batches of up to 4, for compute capability 8.9" in said
    assert "encoding up to 4 images, for compute capability 8.9" in said
    monkeypatch.setattr(tensorrt_plan, "build_plan", refuse)
    order = PlanOrder(find_library("tensorrt-rtx"), mixed, SHAPES, BuildOptions(), "a GPU", "8.9")
    found = [plan_for(order.parts()[profile]) for profile in (SCORE, ENCODE)]
    assert found == [plan.read_bytes() for plan in plans]
    assert found[0] != found[1]


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("which", ["plan", "note", "digest", "another bundle", "lost note"])
def test_what_does_not_fit_is_not_taken(
    which: str,
    built: tuple[Path, str],
    bundle: Bundle,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan, digest = built
    message = {
        "plan": "is damaged",
        "note": "was changed",
        "digest": "give the 64 digits",
        "another bundle": "is not of the bundle",
        "lost note": "tiny.plan.json",
    }[which]
    if which == "plan":
        change(plan)
    elif which == "note":
        change(note_path(plan))
    elif which == "digest":
        digest = digest[:-1]
    elif which == "another bundle":
        bundle = write_tiny_bundle(tmp_path / "other", seed=1)
    else:
        note_path(plan).unlink()
    assert take(plan, bundle, digest) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not cache.exists()


def test_a_plan_of_another_version_is_not_taken(
    built: tuple[Path, str], bundle: Bundle, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, _ = built
    note = json.loads(note_path(plan).read_text())
    note["keys"][0]["version"] = "1.6.0.1"
    note_path(plan).write_text(json.dumps(note))
    digest = hashlib.sha256(note_path(plan).read_bytes()).hexdigest()
    assert take(plan, bundle, digest) == 2
    assert "runs only on the version that built it" in capsys.readouterr().err
    assert not cache.exists()


def test_a_plan_of_an_older_vitcx_is_not_taken(
    built: tuple[Path, str], bundle: Bundle, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its builder may have been set otherwise, in ways that the key does not show."""
    plan, _ = built
    note = json.loads(note_path(plan).read_text())
    note["schema_version"] -= 1
    note_path(plan).write_text(json.dumps(note))
    digest = hashlib.sha256(note_path(plan).read_bytes()).hexdigest()
    assert take(plan, bundle, digest) == 2
    assert "build the plan with this vitcx" in capsys.readouterr().err
    assert not cache.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Missing option"),
        (["--compute-capability", "9.9"], "compute capability 9.9: it has"),
        (["--compute-capability", "sm_89"], "expected one such as 8.9"),
        (["--compute-capability", "8.9", "--batch-size", "0"], "batch-size"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    options: list[str],
    message: str,
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "tiny.plan"
    assert main(["plan", "build", str(bundle.path), "--out", str(out), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "tensorrt-rtx"], "go together"),
        (["--compute-capability", "8.9"], "go together"),
        (["--engine", "tensorrt-rtx", "--compute-capability", "9.9"], "it has"),
    ],
)
def test_export_refuses_a_plan_before_it_exports(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "test_vit", "--out", str(tmp_path / "bundle"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_export_builds_the_plan_of_what_it_wrote(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "exported"
    figures = ("images", "probabilities_max_abs", "embedding_max_abs", "embedding_rms_relative")

    def export_model(model: str, folder: Path, **settings: Any) -> Bundle:
        shutil.copytree(bundle.path, folder)
        return Bundle(folder, replace(bundle.manifest, parity=dict.fromkeys(figures, 0.0)))

    monkeypatch.setattr(export, "export_model", export_model)
    engine = ["--engine", "tensorrt-rtx", "--compute-capability", "8.9"]
    assert main(["export", "any", "--out", str(out), *engine]) == 0
    digest = re.findall(r"sha256 ([0-9a-f]{64})", capsys.readouterr().out)[0]
    assert take(tmp_path / "exported.plan", Bundle(out, bundle.manifest), digest) == 0
