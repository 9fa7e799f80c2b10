"""The container files: what they name is there, and their commands do what they are for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
tomllib = pytest.importorskip("tomllib")  # of Python 3.11

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "docker"
DOCKERFILES = ["Dockerfile", "Dockerfile.gpu"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def instructions(name: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction, lines that go on joined, comments left out."""
    text = (FOLDER / name).read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def last(name: str, word: str) -> str:
    return [rest for found, rest in instructions(name) if found == word][-1]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_installs_extras_that_there_are_and_runs_the_command_as_nobody(name: str) -> None:
    known = {
        "FROM", "COPY", "RUN", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK",
        "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert {word for word, _ in instructions(name)} <= known
    (extras,) = re.findall(r"/source\[([\w,]+)\]", (FOLDER / name).read_text("utf-8"))
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert json.loads(last(name, "ENTRYPOINT"))[0] in PROJECT["scripts"]
    words = [word for word, _ in instructions(name)]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert int(last(name, "USER").split(":")[0]) > 0
    version = last(name, "FROM").removeprefix("python:").removesuffix("-slim")
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_build_gets_what_it_needs_and_no_more(name: str) -> None:
    lines = (FOLDER / f"{name}.dockerignore").read_text("utf-8").splitlines()
    assert "*" in lines
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert {"src", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} == sent
    assert all((ROOT / path).exists() for path in sent)


@pytest.mark.slow
def test_the_health_check_tells_a_server_that_is_ready_from_none(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("onnx")
    from tests.serving.running import address, serving
    from tests.tiny_bundle import write_tiny_bundle

    check = last("Dockerfile", "HEALTHCHECK")
    assert check == last("Dockerfile.gpu", "HEALTHCHECK").replace("900s", "60s")
    _, *code = json.loads(check.partition("CMD ")[2])

    def ask(port: int) -> int:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
            "VITCX_PORT": str(port),
        }
        done = subprocess.run(
            [sys.executable, *code], env=environment, capture_output=True, timeout=60
        )
        return done.returncode

    folder = tmp_path_factory.mktemp("bundle")
    write_tiny_bundle(folder)
    # As the compose file starts it: on every network, and by the name that Prometheus asks for.
    words = read(FOLDER / "compose.yaml")["services"]["vitcx"]["command"][1:]
    with serving(str(folder), *words, token="secret", at="http://0.0.0.0:") as (_, client):
        port = address(client)[1]
        assert ask(port) == 0
        head = {"Host": "vitcx:8000", "Authorization": "Bearer secret"}
        url = f"http://127.0.0.1:{port}/metrics"
        assert "vitcx_ready 1.0" in client.get(url, headers=head).text
    assert ask(port) == 1


def test_the_services_fit_together() -> None:
    services = read(FOLDER / "compose.yaml")["services"]
    volumes = read(FOLDER / "compose.yaml")["volumes"]
    ports = {}
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith(".") and source != "./bundles":
                assert (FOLDER / source).is_file(), source
            elif not source.startswith("."):
                assert source in volumes
        for port in service["ports"]:
            host, _, inside = port.split(":")
            assert host == "127.0.0.1"
            ports[name] = inside
    build = services["vitcx"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).samefile(FOLDER / "Dockerfile")
    assert ports["vitcx"] == last("Dockerfile", "EXPOSE")
    (job,) = read(FOLDER / "prometheus.yaml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"vitcx:{ports['vitcx']}"]}]
    (source,) = read(FOLDER / "grafana" / "datasources.yaml")["datasources"]
    assert source["url"] == f"http://prometheus:{ports['prometheus']}"
    (provider,) = read(FOLDER / "grafana" / "dashboards.yaml")["providers"]
    target = f"../grafana/vitcx.json:{provider['options']['path']}/vitcx.json:ro"
    assert target in services["grafana"]["volumes"]
