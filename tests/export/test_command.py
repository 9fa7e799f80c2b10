"""`vitcx export`, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from vitcx.cli import main
from vitcx.export.timm_import import import_timm
from vitcx.runtime.bundle import read_bundle


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(import_timm().create_model("test_vit", num_classes=2).state_dict(), path)
    return path


def test_a_checkpoint_becomes_a_bundle(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    out = tmp_path / "bundle"
    arguments = ["export", "test_vit", "--checkpoint", str(weights), "--out", str(out)]
    options = ["--class-names", str(tmp_path / "names.txt"), "--img-size", "64x96"]
    assert main([*arguments, *options, "--layer", "attn", "--block", "0"]) == 0
    said = capsys.readouterr()
    assert "test_vit, 64x96, 2 classes, embedding 64x4x6 at blocks.0.attn" in said.out
    assert "MB" in said.out
    assert "against torch on 8 images: probabilities within" in said.out
    assert said.err == ""
    m = read_bundle(out).manifest
    assert (m.class_names, m.input_size, m.layer) == (("cat", "dog"), (64, 96), "attn")
    # A second time it is in the way.
    assert main(arguments) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--img-size", "big"], "expected a side or HxW"),
        (["--img-size", "64x"], "expected a side or HxW"),
        (["--layer", "mlp"], "mlp"),
        (["--mean", "a,b"], "'a,b': expected a number, or one for each channel"),
        (["--std", "0.5,0.5"], "std has 2 numbers, and the model takes 3"),
        (["--crop", "round"], "'round': expected a share such as 0.9, or squash"),
        (["--head", "binary"], "binary is for one logit, and the model gives 2"),
        (["--reference", "x.png"], "go with the head none"),
        (["--num-classes", "0"], "num-classes"),
        (["--precision", "fp8"], "fp8"),
        (["--stage", "1"], "no stages"),
        (["--class-names", "missing.txt"], "missing.txt"),
        (["--checkpoint", "missing.pth"], "no checkpoint at 'missing.pth'"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bundle"
    weighted = ["--checkpoint", str(weights), *options]
    assert main(["export", "test_vit", "--out", str(out), *weighted]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("vitcx: ")
    assert said.count("\n") == 1
    assert not out.exists()
