"""`vitcx explain`: overlay, arrays and summary for each picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vitcx.commands.options import (
    check_out_folder,
    engine_options,
    given_settings,
    setting_options,
)
from vitcx.commands.progress import progress_bar
from vitcx.runtime.explainer import load
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.pictures.reading import ArrayFile


@click.command("explain")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--bundle", default="demo", show_default=True, help="'demo' or a bundle's folder.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="top1 (default), top5, a class index or a class name; may be given several times.",
)
@engine_options
@setting_options
@click.option(
    "--input-npy", is_flag=True, help="IMAGES are .npy files: (3,H,W) float32, normalised."
)
@click.option("--figure", is_flag=True, help="Also write NAME.figure.png: masks and coverage.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a picture on stdout.")
def command(
    images: tuple[Path, ...],
    out: Path,
    bundle: str,
    targets: tuple[str, ...],
    engine: str,
    threads: int | None,
    batch_size: int | None,
    allow_imprecise: bool,
    input_npy: bool,
    figure: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Explain IMAGES.

    For each picture writes NAME.png (overlay), NAME.npz (saliency, masks, impacts, coverage,
    probabilities) and NAME.json. A picture that cannot be read is said on stderr and does not stop
    the others.
    """
    if figure:
        _need_matplotlib()
    check_out_folder(out)
    failed = 0
    names = _distinct_names(images)
    with load(bundle, engine, threads, batch_size, allow_imprecise) as explainer:
        results = explainer.try_explain_many(
            [ArrayFile(path) for path in images] if input_npy else images,
            parse_targets(targets),
            **given_settings(settings),
        )
        with progress_bar(wanted=len(images) > 1) as progress:
            bar = progress.add_task("explaining", total=len(images))
            for image, name, result in zip(images, names, results, strict=True):
                if isinstance(result, Exception):
                    failed += 1
                    progress.console.print(
                        f"vitcx: {' '.join(str(result).split())}", markup=False, soft_wrap=True
                    )
                else:
                    written = result.save(out, name, figure=figure)
                    click.echo(_line(image, result, written, as_json))
                progress.advance(bar)
    return 2 if failed else 0


def _need_matplotlib() -> None:
    """Fail before the work, not after it."""
    from importlib.util import find_spec

    from vitcx.runtime.errors import MissingExtraError

    if find_spec("matplotlib") is None:
        raise MissingExtraError("--figure", "matplotlib", "plot")


def parse_targets(words: tuple[str, ...]) -> Any:
    """Digits are indices; one word stays a word, so that `top5` keeps its meaning."""
    parsed = [int(word) if word.isdecimal() else word for word in words]
    if not parsed:
        return None
    return parsed[0] if len(parsed) == 1 else parsed


def _distinct_names(images: tuple[Path, ...]) -> list[str]:
    """File stems, with a number where two pictures share one."""
    names: list[str] = []
    for path in images:
        stem, name, count = path.stem or "picture", path.stem or "picture", 1
        while name in names:
            count += 1
            name = f"{stem}_{count}"
        names.append(name)
    return names


def _line(image: Path, result: Explanation, written: dict[str, Path], as_json: bool) -> str:
    if as_json:
        files = {kind: str(path) for kind, path in written.items()}
        line = {"image": str(image), **result.summary(), "files": files}
        return json.dumps(line, ensure_ascii=False)
    titles = ", ".join(result.title(i) for i in range(len(result.targets)))
    return f"{image}: {titles} -> {written['overlay']}"
