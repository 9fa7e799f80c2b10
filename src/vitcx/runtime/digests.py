"""SHA-256 of files, and writing a file whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vitcx.kernels.files import replacing

__all__ = ["replacing", "sha256_of"]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
