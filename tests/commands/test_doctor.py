"""`vitcx doctor`: the extras, and what to take on a machine."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from vitcx.cli import main
from vitcx.commands.doctor import advise
from vitcx.commands.extras import extra_packages, read_extras
from vitcx.runtime.engines.registry import ENGINES

REQUIREMENTS = [
    "numpy>=1.26",
    'onnxruntime>=1.18; extra == "cpu"',
    'onnxruntime-gpu[cuda,cudnn]>=1.21; extra == "gpu"',
    'cuda-core>=1.0; sys_platform == "linux" and extra == "gpu"',
    "pyarrow>=16; extra == 'dataset'",
    'vitcx[dataset,cpu]; extra == "ray"',
    'ray[data,serve]<2.64,>=2.40; extra == "ray"',
    'vitcx[all]; extra == "all"',
]


def test_the_packages_of_every_extra():
    assert extra_packages(REQUIREMENTS) == {
        "cpu": {"onnxruntime"},
        "gpu": {"onnxruntime-gpu", "cuda-core"},
        "dataset": {"pyarrow"},
        "ray": {"pyarrow", "onnxruntime", "ray"},
        "all": set(),
    }


def test_doctor_lists_every_extra_with_the_line_that_installs_it(capsys, monkeypatch):
    absent = {"matplotlib"}
    real = metadata.version

    def version(name):
        if name in absent:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    main(["doctor"])
    out = capsys.readouterr().out
    listed = set(metadata.metadata("vitcx").get_all("Provides-Extra")) - {"dev", "docs"}
    assert {extra.name for extra in read_extras()} == listed
    assert all(f"  {name} " in out for name in listed)
    assert "pip install 'vitcx[plot]'" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["extras"]["plot"]["missing"] == ["matplotlib"]


def test_doctor_without_metadata_says_so(capsys, monkeypatch):
    def fail(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", fail)
    main(["doctor"])
    assert "vitcx runs from its sources" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("usable", "cores", "engine", "preset"),
    [
        (["onnxruntime"], 2, "onnxruntime", "quick"),
        (["onnxruntime", "openvino"], 16, "onnxruntime", "balanced"),
        (["openvino"], 16, "openvino", "balanced"),
        (["onnxruntime", "openvino", "openvino-bf16"], 4, "openvino-bf16", "quick"),
        (["tensorrt", "cuda", "onnxruntime"], 2, "tensorrt", "best"),
    ],
)
def test_the_advice_fits_the_machine(usable, cores, engine, preset):
    assert set(usable) <= {known.name for known in ENGINES}
    advice = advise(usable, cores)
    assert (advice["engine"], advice["preset"]) == (engine, preset)
    assert advice["why"]


def test_no_engine_is_no_advice():
    assert advise([], 8) == {}
