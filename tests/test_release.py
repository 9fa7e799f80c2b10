"""What a release says of itself: addresses, versions, licences, and that no system is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from tools.published import absolute, with_addresses

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
VERSION = re.search(r'^version = "(.+)"$', PROJECT, re.MULTILINE)[1]
WORKFLOWS = ROOT / ".github" / "workflows"
# Modules that one system alone has.
OF_ONE_SYSTEM = {"fcntl", "grp", "msvcrt", "posix", "pwd", "resource", "termios", "winreg"}


checkout = pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="is published already")


@checkout
def test_a_published_readme_has_no_link_that_leads_nowhere_elsewhere() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    made = absolute(readme, "https://example.org/a/b", "v1.2.3")
    targets = re.findall(r"\]\(([^)\s]+)\)", made)
    assert all(re.match("https?:|#", target) for target in targets), targets
    assert "https://example.org/a/b/raw/v1.2.3/docs/images/demo.jpg" in targets
    assert "https://example.org/a/b/blob/v1.2.3/docs/proof.md" in targets
    assert [target for target in targets if target.startswith("#")] == re.findall(
        r"\]\((#[^)]+)\)", readme
    )


@checkout
def test_published_metadata_names_the_repository() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    made = tomllib.loads(with_addresses(PROJECT, "https://example.org/a/b", "v1"))["project"]
    assert made["urls"]["Repository"] == "https://example.org/a/b"
    assert made["urls"].keys() > {"Documentation", "Changelog", "Issues", "Paper"}


def test_the_citation_has_the_version_and_the_licence() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == VERSION
    assert f'license = "{citation["license"]}"' in PROJECT


def read_workflows() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    if not WORKFLOWS.is_dir():
        pytest.skip("a source distribution has no workflows")
    return {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in WORKFLOWS.glob("*.yml")}


def test_every_job_has_a_time_limit_and_no_more_rights_than_it_needs() -> None:
    for workflow in read_workflows().values():
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 60


def test_the_commands_and_files_of_the_workflows_are_there() -> None:
    make = (ROOT / "Makefile").read_text("utf-8")
    groups = PROJECT.partition("[dependency-groups]\n")[2].partition("\n\n")[0]
    for workflow in read_workflows().values():
        for job in workflow["jobs"].values():
            for command in (step.get("run", "") for step in job["steps"]):
                for target in re.findall(r"^make ([\w-]+)", command, re.MULTILINE):
                    assert f"\n{target}:" in make
                for path in re.findall(r"\btests/[\w/.]+", command):
                    assert (ROOT / path).exists(), path
                for group in re.findall(r"--group (\w+)", command):
                    assert f"{group} = [" in groups


def test_every_python_of_the_classifiers_is_tried() -> None:
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    tried = read_workflows()["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tried == named


def test_no_module_needs_a_module_of_one_system_to_be_imported() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            else:
                continue
            assert not names & OF_ONE_SYSTEM, path
