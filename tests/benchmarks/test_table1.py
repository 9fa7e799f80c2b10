"""Table 1 on a scene of the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="needs the extra 'export'")
pytest.importorskip("onnxruntime", reason="needs the extra 'cpu'")

from benchmarks import table1

RUN = ["--bundle", "demo", "--scenes", "1", "--steps", "2", "--variants", "Variant 3,Variant 5"]
RUN += ["--methods", "ViT-CX,Rollout,CGW1,RISE-20", "--metric", "saco"]


def test_methods_variants_and_the_random_order_are_rows(tmp_path: Path) -> None:
    result = CliRunner().invoke(table1.main, [*RUN, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output.splitlines()[-1])
    expected = ["ViT-CX", "Rollout", "CGW1", "RISE-20", "Variant 3", "Variant 5", "random order"]
    assert list(report["methods"]) == expected
    assert report["methods"]["ViT-CX"]["difference_minus_vit_cx"]["mean"] == 0
    assert all(-1 <= row["saco"]["mean"] <= 1 for row in report["methods"].values())
    assert json.loads((tmp_path / "table1.json").read_text()) == report
    before = (tmp_path / "records.jsonl").read_text()
    again = CliRunner().invoke(table1.main, [*RUN, "--report", "--out", str(tmp_path)])
    assert json.loads(again.output.splitlines()[-1])["methods"] == report["methods"]
    assert (tmp_path / "records.jsonl").read_text() == before


def test_bad_usage_is_one_line(tmp_path: Path) -> None:
    for words, message in (
        (["--bundle", str(tmp_path), "--out", str(tmp_path)], "give IMAGES"),
        ([*RUN, "--variants", "Variant 9", "--out", str(tmp_path)], "no variant of table 2"),
    ):
        result = CliRunner().invoke(table1.main, words)
        assert result.exit_code == 2
        assert message in result.output


def test_the_papers_figures_have_every_row() -> None:
    paper = json.loads(table1.PAPER.read_text(encoding="utf-8"))
    assert paper["table_1"].keys() == table1.METHODS.keys()
    assert paper["table_2"].keys() == table1.VARIANTS.keys()
