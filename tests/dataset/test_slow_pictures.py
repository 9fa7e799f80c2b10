"""A picture that keeps its decoder busy is left out by name, and the others are explained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.slow_pictures import SLOW, slow_decoders
from tests.tiny_bundle import random_picture, write_tiny_bundle
from vitcx.cli import main
from vitcx.runtime.errors import EngineError
from vitcx.runtime.pictures import decoder_process, decoders, reading
from vitcx.sources import items

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Source, folder to write to, and how."""
    write_tiny_bundle(tmp_path / "bundle")
    (tmp_path / "given").mkdir()
    for i in range(2):
        Image.fromarray(random_picture(i)).save(tmp_path / "given" / f"{i}.png")
    (tmp_path / "given" / "slow.png").write_bytes(SLOW)
    monkeypatch.setattr(items, "OWN_DECODE_SECONDS", 1.0)
    more = ["--bundle", str(tmp_path / "bundle"), "--engine", "onnxruntime", "--threads", "1"]
    with slow_decoders(monkeypatch):
        yield [str(tmp_path / "given"), "--out", str(tmp_path / "out"), *more]


def test_a_job_counts_it_and_goes_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", *words]) == 2
    rows = pq.read_table(next((tmp_path / "out").glob("part-*.parquet"))).to_pylist()
    errors = {Path(row["path"]).name: row["error"] for row in rows if row["error"]}
    assert list(errors) == ["slow.png"]
    assert "slow.png' takes longer than 1 s to decode" in errors["slow.png"]
    assert "2 of 3 pictures explained, 1 failed" in capsys.readouterr().out


def test_explain_names_it_and_goes_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *words]) == 2
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["0.json", "1.json"]
    said = capsys.readouterr().err
    assert "slow.png' takes longer than 1 s to decode" in said
    assert "1 of 3 pictures failed" in said


def test_a_file_of_gigabytes_is_not_read(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_FILE_BYTES", 3)
    assert main(["explain", *words]) == 2
    assert "slow.png' has more than 0 MiB" in capsys.readouterr().err


def test_no_decoder_at_all_ends_the_job_and_is_no_fault_of_a_picture(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise EngineError("no process to decode pictures can be started: no memory")

    monkeypatch.setattr(decoder_process.Decoder, "__init__", fail)
    monkeypatch.setattr(decoders, "_pools", {})
    assert main(["dataset", *words]) != 0
    assert not list((tmp_path / "out").glob("part-*"))
