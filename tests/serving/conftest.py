"""A tiny model, and a server of it for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

for module in (
    "onnx",
    "onnxruntime",
    "fastapi",
    "httptools",
    "httpx",
    "msgspec",
    "prometheus_client",
    "python_multipart",
    "uvicorn",
):
    pytest.importorskip(module)


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.tiny_bundle import write_tiny_bundle

    folder = tmp_path_factory.mktemp("bundle")
    write_tiny_bundle(folder)
    return str(folder)


@pytest.fixture(scope="module")
def client(bundle: str) -> Iterator[Any]:
    from tests.serving.running import serving

    with serving(bundle) as (_, client):
        yield client
