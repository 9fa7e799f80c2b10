"""A bundle that the tests of export share, and few threads: the models are small."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'export'")
pytest.importorskip("onnxscript", reason="needs the extra 'export'")

from tests.export import tiny  # noqa: E402
from vitcx.export import export_model  # noqa: E402
from vitcx.runtime.bundle import Bundle  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def vit_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`tiny.make("vit")`, exported with the defaults."""
    return export_model(tiny.make("vit"), tmp_path_factory.mktemp("vit") / "bundle")
