"""The cache of plans: two processes, a full disk, damage, and files that are not ours."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vitcx.runtime.engines.tensorrt.plan_cache import (
    PlanKey,
    cache_directory,
    find,
    get_or_build,
    keep,
)

pytest.importorskip("filelock", reason="needs the extra 'rtx' or 'gpu'")

KEY = PlanKey(
    files={"model.onnx": "00" * 32},
    graph="model.onnx",
    flavour="tensorrt-rtx",
    version="1.7.1.116",
    compute_capability="8.9",
    gpu_name="NVIDIA RTX 4090",
    precision="fp16",
    shapes={"encode_images": 8, "batch_size": 64},
    options={"tf32": False},
)
PLAN = bytes(range(256)) * 400
SOURCE = Path(__file__).resolve().parents[4] / "src"


class Builder:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        return PLAN


@pytest.fixture
def build() -> Builder:
    return Builder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "plans"


def plan_file(folder: Path) -> Path:
    (path,) = folder.glob("*.plan")
    return path


def test_the_second_use_reads_the_file(folder: Path, build: Builder) -> None:
    assert get_or_build(KEY, build, folder) == PLAN
    assert get_or_build(KEY, build, folder) == PLAN
    assert build.calls == 1
    assert find(KEY, folder) == PLAN


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_nobody_else_can_read_or_write_it(folder: Path, build: Builder) -> None:
    get_or_build(KEY, build, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file


def test_the_note_tells_what_the_plan_is_of(folder: Path, build: Builder) -> None:
    get_or_build(KEY, build, folder)
    note = json.loads(plan_file(folder).with_suffix(".json").read_text())
    assert PlanKey(**note) == KEY


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"model.onnx": "01" * 32}},
        {"graph": "encoder.onnx"},
        {"files": {"model.onnx": "00" * 32, "model.onnx.data": "02" * 32}},
        {"flavour": "tensorrt"},
        {"version": "1.7.1.117"},
        {"compute_capability": "12.0"},
        {"gpu_name": "NVIDIA L4"},
        {"precision": "fp32"},
        {"shapes": {"encode_images": 8, "batch_size": 32}},
        {"options": {"tf32": True}},
    ],
)
def test_each_part_of_the_key_makes_another_plan(change: dict[str, object]) -> None:
    assert dataclasses.replace(KEY, **change).digest() != KEY.digest()  # type: ignore[arg-type]
    assert len(change) == 1


def test_every_part_of_the_key_is_tested_above() -> None:
    (mark,) = test_each_part_of_the_key_makes_another_plan.pytestmark
    tested = {name for change in mark.args[1] for name in change}
    assert tested == {field.name for field in dataclasses.fields(PlanKey)}


@pytest.mark.parametrize("damage", [b"", PLAN[:-1], PLAN[:-1] + b"x", PLAN + b"x"])
def test_a_plan_that_is_not_what_was_written_is_built_again(
    damage: bytes, folder: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    get_or_build(KEY, build, folder)
    plan_file(folder).write_bytes(damage)
    assert find(KEY, folder) is None
    assert get_or_build(KEY, build, folder) == PLAN
    assert get_or_build(KEY, build, folder) == PLAN
    assert build.calls == 2
    assert "not the file that was written" in caplog.text


@pytest.mark.parametrize("note", ["", "{}", None])
def test_the_note_is_for_people_alone(note: str | None, folder: Path, build: Builder) -> None:
    get_or_build(KEY, build, folder)
    path = plan_file(folder).with_suffix(".json")
    path.unlink() if note is None else path.write_text(note)
    assert get_or_build(KEY, build, folder) == PLAN
    assert build.calls == 1


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_plan_that_others_can_write_is_not_read(folder: Path, build: Builder) -> None:
    get_or_build(KEY, build, folder)
    plan_file(folder).chmod(0o622)
    assert find(KEY, folder) is None
    get_or_build(KEY, build, folder)
    assert build.calls == 2
    assert plan_file(folder).stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_folder_that_others_can_write_is_not_used(
    folder: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    get_or_build(KEY, build, folder)
    folder.chmod(0o777)
    assert find(KEY, folder) is None
    assert get_or_build(KEY, build, folder) == PLAN
    assert build.calls == 2
    assert "others can write to it" in caplog.text
    assert not keep(KEY, PLAN, folder)


def test_a_cache_that_cannot_be_made_is_no_error(
    tmp_path: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert get_or_build(KEY, build, blocked / "plans") == PLAN
    assert "no plan can be kept" in caplog.text


def test_an_error_of_the_build_passes_and_leaves_nothing(folder: Path, build: Builder) -> None:
    def fail() -> bytes:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        get_or_build(KEY, fail, folder)
    assert [file.suffix for file in folder.iterdir()] == [".lock"]
    assert get_or_build(KEY, build, folder) == PLAN


def test_it_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory().name == "plans"
    if sys.platform == "linux":
        assert cache_directory() == tmp_path / "vitcx" / "plans"


# --- several processes ----------------------------------------------------------------------------

PROCESS = """
    import pathlib, sys, time
    sys.path.insert(0, sys.argv[3])
    from vitcx.runtime.engines.tensorrt.plan_cache import PlanKey, get_or_build
    folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
    key = PlanKey({}, "g", "f", "1", "8.9", "gpu", "fp16", {}, {})
    def build():
        with (folder.parent / "builds").open("a") as file:
            file.write("built\\n")
        time.sleep(seconds)
        return b"plan" * 1000
    assert get_or_build(key, build, folder) == b"plan" * 1000
    print("done")
"""


def start(folder: Path, seconds: float, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", before + textwrap.dedent(PROCESS), str(folder), str(seconds),
         str(SOURCE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def builds(folder: Path) -> int:
    path = folder.parent / "builds"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_processes_that_want_the_same_plan_build_it_once(folder: Path) -> None:
    processes = [start(folder, 1.0) for _ in range(3)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert [out for out, _ in said] == ["done\n"] * 3
    assert builds(folder) == 1


def test_a_process_that_is_killed_while_it_builds_blocks_nobody(folder: Path) -> None:
    killed = start(folder, 600)
    deadline = time.monotonic() + 30
    while not builds(folder):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    waiting = start(folder, 0)
    killed.kill()
    killed.communicate()
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (0, "done\n"), err
    assert builds(folder) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no file size limits here")
def test_a_write_that_ends_half_way_leaves_no_plan_and_is_no_error(folder: Path) -> None:
    # The kernel refuses what goes beyond 1000 bytes, as a full disk does.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    process = start(folder, 0, limited)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "done\n"), err
    assert "cannot be written" in err
    assert [file.suffix for file in folder.iterdir()] == [".lock"]
