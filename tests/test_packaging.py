"""The wheel and the source distribution: the same files, however the sources arrived."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vitcx"
LINKS = ("export", "kernels", "runtime")

pytest.importorskip("setuptools", minversion="77")


def run(*command: object, cwd: Path) -> None:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def build_wheel(source: Path, out: Path) -> dict[str, str]:
    """SHA-256 by name of the files in the wheel of `source`, a folder or a source distribution."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", out, source, cwd=out.parent)  # fmt: skip
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def build_sdist(source: Path, out: Path) -> Path:
    build = "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])"
    run(sys.executable, "-W", "ignore", "-c", build, out, cwd=source)
    (sdist,) = out.glob("*.tar.gz")
    return sdist


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """This checkout as it is now, without what earlier builds left in it."""
    folder = tmp_path_factory.mktemp("tree") / "vitcx"
    kept = [
        *("src", "tests", "benchmarks", "docs", "examples", "tools"),
        *(p.name for p in ROOT.iterdir() if p.is_file() and p.name != ".git"),
    ]
    leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc")
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory):
    return build_sdist(tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    """The source distribution's folder."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (inside,) = folder.iterdir()
    return inside


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The wheel's files by the way in which the last commit arrived."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no git checkout, or git is not installed")
    folder = tmp_path_factory.mktemp("arrivals")
    git = ["git", "-c", "safe.directory=*"]
    run(*git, "clone", "--quiet", ROOT, folder / "clone", cwd=folder)
    run(*git, "-c", "core.symlinks=false", "clone", "--quiet", "-c", "core.symlinks=false",
        ROOT, folder / "no-links", cwd=folder)  # fmt: skip
    run(*git, "archive", "--format=zip", f"--output={folder / 'head.zip'}", "HEAD", cwd=ROOT)
    # As Windows' own tool unpacks it: a link becomes a text file.
    zipfile.ZipFile(folder / "head.zip").extractall(folder / "zip")
    for name in LINKS:
        assert (folder / "clone" / name).is_symlink()
        for without in ("no-links", "zip"):
            assert not (folder / without / name).is_symlink()
            assert (folder / without / name).is_file()
    (folder / "dist").mkdir()
    sources = {
        **{name: folder / name for name in ("clone", "no-links", "zip")},
        "sdist": build_sdist(folder / "clone", folder / "dist"),
    }
    return {name: build_wheel(path, folder / f"wheel-{name}") for name, path in sources.items()}


@pytest.mark.parametrize("arrival", ["no-links", "zip", "sdist"])
def test_the_wheel_is_the_same_however_the_sources_arrived(committed, arrival):
    assert committed[arrival] == committed["clone"]


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    expected = {
        f"vitcx/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert {n for n in wheel if n.startswith("vitcx/") and n.endswith(".py")} == expected
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vitcx"}


def test_the_wheel_holds_the_model_the_kernels_the_page_and_the_types(wheel):
    assert "vitcx/py.typed" in wheel
    for folder in ("runtime/demo/bundle", "kernels/cuda", "serving/page"):
        expected = {path.name for path in (PACKAGE / folder).iterdir() if path.is_file()}
        found = {n.rsplit("/", 1)[1] for n in wheel if n.startswith(f"vitcx/{folder}/")}
        assert found == expected, folder
    assert sum(p.stat().st_size for p in (PACKAGE / "runtime/demo/bundle").iterdir()) <= 8_000_000


def test_the_source_distribution_holds_the_tests_and_what_they_read(unpacked):
    for folder in ("tests", "benchmarks", "tools", "docs", "examples"):
        expected = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        inside = {
            path.relative_to(unpacked).as_posix()
            for path in (unpacked / folder).rglob("*")
            if path.is_file()
        }
        assert inside == expected


def test_the_tests_of_the_source_distribution_can_run(unpacked):
    """Two files of them do; the links of a checkout are not in it."""
    run(sys.executable, "-c",
        "import sys; sys.path[:0] = ['src', '.']; import pytest, vitcx; "
        "assert vitcx.__file__.startswith(sys.argv[1]), vitcx.__file__; "
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/test_project.py', "
        "'tests/evaluation/test_curves.py']))",
        unpacked, cwd=unpacked)  # fmt: skip


def test_the_top_level_links_point_into_the_package():
    if (ROOT / "PKG-INFO").exists():
        pytest.skip("a source distribution has no links")
    for name in LINKS:
        assert (ROOT / name).is_symlink()
        assert (ROOT / name).resolve() == PACKAGE / name
