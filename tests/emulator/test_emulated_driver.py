"""The tests for a GPU, on an emulated driver: the real `cuda.core`, NVRTC and our kernels' sources.

What is emulated is what lies under `cuda.core`. Streams run beside the program there, device memory
is no host memory, and recordings refuse what CUDA's refuse (emulator/).
"""

from __future__ import annotations

import pytest

from tests.emulator import emulated_driver

pytest.importorskip("cuda.core")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return emulated_driver.build(tmp_path_factory.mktemp("driver"))


@pytest.mark.parametrize("delay_us", [pytest.param(0, marks=pytest.mark.slow), 300])
def test_the_kernels_tests_for_a_gpu_pass(libraries, delay_us):
    arguments = ("-m", "gpu", "tests/kernels/gpu/test_gpu.py")
    outcomes, output = emulated_driver.run_tests(libraries, *arguments, delay_us=delay_us)
    skipped = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    assert all("torch" in line or "cupy" in line for line in skipped), skipped
    assert outcomes["passed"] >= 33


@pytest.mark.parametrize("delay_us", [0, pytest.param(2000, marks=pytest.mark.slow)])
def test_explanations_on_the_emulated_driver(libraries, delay_us):
    pytest.importorskip("onnx")
    path = "tests/runtime/engines/emulated_sessions.py"
    outcomes, _ = emulated_driver.run_tests(libraries, path, delay_us=delay_us, plain=True)
    assert outcomes["passed"] >= 20
    assert "skipped" not in outcomes
