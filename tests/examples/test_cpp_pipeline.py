"""The C++ examples: built by CMake, run on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import vitcx
from vitcx.kernels.host.blend import MASKED, NOISY, Perturbation, blend
from vitcx.kernels.host.noise import NoiseCache

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples" / "cpp_pipeline"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
]


def build(folder, *options, target):
    configure = ["cmake", "-S", str(SOURCE), "-B", str(folder), *options]
    subprocess.run(configure, check=True, capture_output=True, text=True)
    done = subprocess.run(
        ["cmake", "--build", str(folder), "--target", target],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / target


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The embedded model where it is there, else a tiny one with random weights."""
    try:
        vitcx.load("demo", engine="onnxruntime").close()
    except vitcx.VitcxError:
        pytest.importorskip("torch", reason="no embedded model, and no torch to make one")
        from tests.export import tiny
        from vitcx.export import export_model

        folder = tmp_path_factory.mktemp("bundle") / "tiny"
        export_model(tiny.make("vit"), folder)
        return str(folder)
    return "demo"


def test_kernels_alone(tmp_path):
    program = build(tmp_path, "-DVITCX_PYTHON=OFF", target="kernels_only")
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    pixels = (np.arange(3 * 64 * 64) % 97 / 48 - 1).astype(np.float32).reshape(1, 3, 64, 64)
    masks = (np.arange(32) % 5 / 4).astype(np.float32).reshape(2, 4, 4)
    batch = np.empty((4, 3, 64, 64), np.float32)
    perturbations = [
        Perturbation(
            0,
            k,
            k,
            2026,
            0.1,
            (
                (MASKED, 2 * k),
                (NOISY, 2 * k + 1),
            ),
        )
        for k in range(2)
    ]
    blend(pixels, masks, perturbations, batch, NoiseCache())
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for row, line in enumerate(lines):
        sum_, first = (float(part.split()[-1]) for part in line.split(","))
        assert sum_ == pytest.approx(float(batch[row].astype(np.float64).sum()), abs=5e-3)
        assert first == pytest.approx(float(batch[row, 0, 0, 0]), abs=3e-6)


def test_launcher_links_without_python(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on this machine")
    options = ["-DVITCX_PYTHON=OFF", "-DVITCX_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90"]
    assert build(tmp_path, *options, target="kernels_only_cuda").is_file()


def test_embedding_python(tmp_path, bundle):
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        pytest.skip("no Python.h: this Python cannot be embedded")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("no shared libpython")
    program = build(tmp_path, f"-DPython3_EXECUTABLE={sys.executable}", target="embed")
    # The package as the tests see it, whether it is installed or not.
    environment = {**os.environ, "PYTHONPATH": str(Path(vitcx.__file__).parents[1])}
    done = subprocess.run(
        [str(program), bundle], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    frames = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["frame"] for f in frames] == [0, 1]
    with vitcx.load(bundle, engine="onnxruntime") as explainer:
        height, width = explainer.bundle.manifest.input_size
        for number, frame in enumerate(frames):
            expected = explainer.explain(drawn(height, width, number + 1)).saliency
            assert frame["frame_is_shared"]
            assert frame["values"] == expected.size
            # Threads may sum in another order.
            assert frame["peak_value"] == pytest.approx(float(expected.max()), rel=1e-3)
            assert expected[0][tuple(frame["peak"])] == pytest.approx(expected.max(), rel=1e-3)


def drawn(height, width, shift):
    """What `draw` in embed.cpp draws."""
    c, y, x = np.ogrid[:3, :height, :width]
    inside = (y // 8 % 4 == shift % 4) & (x // 8 % 4 == shift % 4)
    return np.where(inside, 1.5, (c + x + y) % 7 / np.float32(7) - np.float32(0.5)).astype("f4")
