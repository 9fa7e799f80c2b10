"""Wheels for a GPU machine without a package index: fetched here, taken there in parcels.

    python benchmarks/gpu/wheelhouse.py fetch kernels engines --out parcels
    python benchmarks/gpu/wheelhouse.py pack BUNDLE --out parcels-of-the-bundle
    python benchmarks/gpu/wheelhouse.py join parcels/* --out wheels

`fetch` downloads a step's wheels by pip and packs them, `pack` packs any files or folders: into
folders of at most so many MiB, larger files cut into pieces. Each parcel says what all of them
hold, so `join` can tell what has not come, and checks every SHA-256. It needs Python alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

# Without what a machine with torch, onnx and onnxruntime has: numpy, protobuf, sympy, packaging,
# typing-extensions, NVRTC, cuBLAS. What is named and there already is left as it is by pip.
_TESTS = ("pytest", "pytest-timeout", "iniconfig", "pluggy", "pygments")
_PACKAGE = ("scipy", "pillow", "platformdirs")
STEPS = {
    "kernels": ("cuda-core", "cuda-bindings", "cuda-pathfinder", *_PACKAGE, *_TESTS),
    "engines": ("onnxruntime-gpu", "flatbuffers"),
    # torchvision belongs to one version of torch: 0.26 to 2.11.
    "torch": (
        *("timm", "torchvision==0.26.*", "pyyaml", "safetensors"),
        *("onnxscript", "onnx-ir", "ml-dtypes"),
    ),
}
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")
INDEX = "index.json"
MIB = 1 << 20
_BLOCK = 1 << 20


def fetch(steps: Iterable[str], python: str, folder: Path) -> None:
    """Download the steps' wheels, and nothing that they depend on, into `folder`."""
    wanted = sorted({name for step in steps for name in STEPS[step]})
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
         "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms,
         "--dest", str(folder), *wanted],
        check=True,
    )  # fmt: skip


def pack(sources: Iterable[Path], out: Path, most_bytes: int) -> list[Path]:
    """Put files and folders into parcels of at most `most_bytes`, the index not counted.

    Returns
    -------
    the parcels, folders of `out`.
    """
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"'{out}' is not empty: choose another folder")
    files: dict[str, dict[str, Any]] = {}
    room, parcels = 0, list[Path]()
    for name, path in sorted(_files(sources)):
        whole, pieces = hashlib.sha256(), []
        with path.open("rb") as file:
            left = path.stat().st_size
            while left or not pieces:
                if room == 0:
                    parcels.append(out / f"parcel-{len(parcels):02}")
                    parcels[-1].mkdir(parents=True)
                    room = most_bytes
                piece = parcels[-1] / f"{len(files):04}.{len(pieces):03}"
                size = min(left, room)
                digest = _copy(file, piece, size, whole)
                pieces.append({"name": piece.name, "bytes": size, "sha256": digest})
                left, room = left - size, room - size
        files[name] = {"sha256": whole.hexdigest(), "pieces": pieces}
    for parcel in parcels:
        (parcel / INDEX).write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")
    return parcels


def _files(sources: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Name in the parcels, and path; what lies in a folder keeps its place in it."""
    for source in sources:
        if source.is_dir():
            for path in source.rglob("*"):
                if path.is_file():
                    yield f"{source.name}/{path.relative_to(source).as_posix()}", path
        else:
            yield source.name, source


def _copy(file: Any, piece: Path, size: int, whole: Any) -> str:
    digest = hashlib.sha256()
    with piece.open("wb") as target:
        while size:
            block = file.read(min(size, _BLOCK))
            if not block:
                raise SystemExit(f"'{file.name}' became shorter while it was read")
            target.write(block)
            digest.update(block)
            whole.update(block)
            size -= len(block)
    return digest.hexdigest()


def join(parcels: Iterable[Path], out: Path) -> list[str]:
    """Put together what the parcels hold; a file that is there already and right is left alone.

    Returns
    -------
    a line for each file that cannot be made: which piece is missing, or is damaged.
    """
    folders = [folder for folder in parcels if folder.is_dir()]
    indices = [folder / INDEX for folder in folders if (folder / INDEX).is_file()]
    if not indices:
        return [f"no {INDEX} in {', '.join(map(str, folders)) or 'no folder at all'}"]
    files: dict[str, dict[str, Any]] = {}
    pieces: dict[tuple[str, str], Path] = {}  # the same name may be another piece elsewhere
    for index in indices:
        files |= json.loads(index.read_text(encoding="utf-8"))
    for folder in folders:
        for path in folder.iterdir():
            if path.name != INDEX:
                pieces[path.name, _sha256(path)] = path
    faults = []
    for name, file in sorted(files.items()):
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            faults.append(f"{name}: no name of a file in a folder")
            continue
        target = out / place
        if target.is_file() and _sha256(target) == file["sha256"]:
            continue
        keys = [(piece["name"], piece["sha256"]) for piece in file["pieces"]]
        lacking = [piece for piece, digest in keys if (piece, digest) not in pieces]
        if lacking:
            faults.append(f"{name}: missing or damaged: {', '.join(lacking)}")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".part")
        with unfinished.open("wb") as whole:
            for key in keys:
                with pieces[key].open("rb") as piece:
                    shutil.copyfileobj(piece, whole, _BLOCK)
        if _sha256(unfinished) != file["sha256"]:
            faults.append(f"{name}: its pieces are right and it is not: pack it again")
            unfinished.unlink()
            continue
        unfinished.replace(target)
    return faults


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download a step's wheels, and pack them")
    fetching.add_argument("steps", nargs="+", choices=list(STEPS))
    fetching.add_argument("--python", default="3.12", help="of the GPU machine")
    packing = commands.add_parser("pack", help="pack files and folders")
    packing.add_argument("sources", nargs="+", type=Path)
    joining = commands.add_parser("join", help="put together what was packed")
    joining.add_argument("parcels", nargs="+", type=Path)
    for command in (fetching, packing, joining):
        command.add_argument("--out", required=True, type=Path)
    for command in (fetching, packing):
        command.add_argument("--most", type=int, default=48, help="MiB of a parcel")
    given = parser.parse_args()
    if given.command == "join":
        faults = join(given.parcels, given.out)
        print(*faults, sep="\n", end="\n" if faults else "")
        sys.exit(1 if faults else 0)
    if given.most < 1:
        parser.error("--most is at least 1")
    with tempfile.TemporaryDirectory() as temporary:
        sources = getattr(given, "sources", None)
        if sources is None:
            fetch(given.steps, given.python, Path(temporary))
            sources = sorted(Path(temporary).iterdir())
        for path in sources:
            print(f"{path.name}  {_size(path) / 1e6:.1f} MB")
        parcels = pack(sources, given.out, given.most * MIB)
    print(f"{len(parcels)} parcels in '{given.out}'")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for _, file in _files([path]))


if __name__ == "__main__":
    main()
