"""A tenth of the attack, on a tiny model: nothing falls, nobody is kept out."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.bad_input import bad_request, good_pictures, mutated

CHECKOUT = Path(__file__).resolve().parents[2]


def test_bad_input_is_made_from_its_seed_alone() -> None:
    good = good_pictures()
    assert len(good) >= 15
    files = sorted(good.values())
    for seed in range(50):
        requests = [bad_request(random.Random(seed), files[0], "m", 8) for _ in range(2)]
        assert requests[0] == requests[1]
        pictures = [mutated(random.Random(seed), files[1], files[2]) for _ in range(2)]
        assert pictures[0] == pictures[1]
        assert pictures[0] != files[1]


def test_good_pictures_are_pictures(tmp_path: Path) -> None:
    for name, data in good_pictures().items():
        path = tmp_path / "picture"
        path.write_bytes(data)
        with Image.open(path) as image:
            image.load()
            assert image.size == (96, 80), name


def test_a_graph_that_the_engine_does_not_take_is_told_in_one_line(tmp_path: Path) -> None:
    """ONNX Runtime's own words end in a line break."""
    pytest.importorskip("onnxruntime")
    import vitcx
    from vitcx.runtime.errors import BundleError

    demo = Path(vitcx.__file__).parent / "runtime" / "demo" / "bundle"
    files = {path.name: path.read_bytes() for path in demo.iterdir() if path.is_file()}
    # The graph's output has another name than the node's that makes it.
    before, _, after = files["model.onnx"].rpartition(b"embedding")
    files["model.onnx"] = before + b"embeddinh" + after
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["model.onnx"] = hashlib.sha256(files["model.onnx"]).hexdigest()
    files["manifest.json"] = json.dumps(manifest).encode()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BundleError) as caught:
        vitcx.load(tmp_path, "onnxruntime")
    assert "ONNX Runtime cannot load" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_tenth_of_the_attack(tmp_path: Path) -> None:
    for module in ("onnx", "onnxruntime", "fastapi", "httptools", "msgspec", "uvicorn"):
        pytest.importorskip(module)
    pytest.importorskip("resource", reason="the attack needs a POSIX system")
    from tests.tiny_bundle import write_tiny_bundle

    write_tiny_bundle(tmp_path / "bundle")
    report = tmp_path / "report.json"
    words = ["--bundle", str(tmp_path / "bundle"), "--scale", "0.1", "--seconds", "40"]
    environment = {**os.environ, "PYTHONPATH": f"{CHECKOUT / 'src'}{os.pathsep}{CHECKOUT}"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.attack", *words, "--out", str(report)],
        cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert report.exists(), done.stderr[-3000:]
    said = json.loads(report.read_text())
    assert done.returncode == 0, json.dumps(said, indent=1)
    assert json.loads(done.stdout.splitlines()[-1]) == said
    assert said["requests"]["sent"] > 50
    assert said["pictures"]["sent"] > 50
    assert said["bundles"]["opened"] > 5
    assert said["connections"]["silent"] == 100
