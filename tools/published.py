"""Prepares a checkout for a release: README's links and the metadata name the repository's address.

A package index shows the README far from the repository, where relative links lead nowhere. The
address is not in the sources, so that a fork's release names the fork.

    python -m tools.published https://github.com/OWNER/NAME v1.2.3
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def absolute(text: str, repository: str, ref: str) -> str:
    """Markdown whose relative links and pictures lead into the repository at `ref`."""

    def address(match: re.Match[str]) -> str:
        kind = "raw" if match[1] else "blob"
        return f"{match[1]}[{match[2]}]({repository}/{kind}/{ref}/{match[3]})"

    return _LINK.sub(address, text)


def with_addresses(project: str, repository: str, ref: str) -> str:
    """A pyproject.toml whose table of addresses names the repository."""
    heading = "[project.urls]\n"
    if project.count(heading) != 1:
        raise ValueError("pyproject.toml has no table [project.urls]")
    addresses = {
        "Repository": repository,
        "Documentation": f"{repository}/blob/{ref}/docs/README.md",
        "Changelog": f"{repository}/blob/{ref}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = "".join(f'{name} = "{address}"\n' for name, address in addresses.items())
    return project.replace(heading, heading + lines)


def main() -> None:
    """Rewrite README.md and pyproject.toml of this checkout."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("repository", help="its address, without a slash at the end")
    parser.add_argument("ref", help="tag or commit of the release")
    given = parser.parse_args()
    for name, rewrite in (("README.md", absolute), ("pyproject.toml", with_addresses)):
        path = ROOT / name
        text = rewrite(path.read_text(encoding="utf-8"), given.repository, given.ref)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
