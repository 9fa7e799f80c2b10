"""What `export_model` looks at before the work of minutes begins."""

from __future__ import annotations

import pytest

from vitcx.cli import main
from vitcx.export import exporting
from vitcx.runtime.errors import InputError


def test_a_missing_check_image_is_told_before_anything_else(tmp_path, monkeypatch, capsys):
    def too_late():
        raise AssertionError("the export has begun")

    monkeypatch.setattr(exporting, "require_export_extra", too_late)
    with pytest.raises(InputError, match=r"no picture at 'nowhere\.jpg'"):
        exporting.export_model("vit_tiny", tmp_path / "b", check_images=["nowhere.jpg"])
    words = ["export", "vit_tiny", "--out", str(tmp_path / "b"), "--check-image", "nowhere.jpg"]
    assert main(words) == 2
    assert "no picture at 'nowhere.jpg'" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_class_names_may_be_the_path_of_their_file(tmp_path, kind):
    names = tmp_path / "n.txt"
    names.write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"n\.txt' must hold names"):
        exporting.export_model("vit_tiny_patch16_224", tmp_path / "b", class_names=kind(names))
