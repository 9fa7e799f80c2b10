"""Cores of the processor."""

from vitcx.runtime import cores
from vitcx.runtime.cores import available_cores


def test_cores_are_counted_once_each(monkeypatch, tmp_path):
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(cores, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert available_cores() == 2
    monkeypatch.setattr(cores, "_TOPOLOGY", tmp_path / "nowhere")
    assert available_cores() == 3


def test_a_system_that_tells_no_affinity_tells_its_cores(monkeypatch):
    monkeypatch.delattr(cores.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 6)
    assert available_cores() == 6
