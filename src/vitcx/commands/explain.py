"""`vitcx explain`: overlay, arrays and summary for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from vitcx.commands.options import (
    SectionedCommand,
    bundle_option,
    check_out_folder,
    engine_options,
    given_settings,
    setting_options,
)
from vitcx.commands.progress import progress_bar
from vitcx.commands.terminal import plain, say, say_json
from vitcx.runtime.explainer import load
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.pictures.reading import ArrayFile
from vitcx.runtime.result_files import ResultFolder, SavedResult
from vitcx.runtime.targets import resolve_targets

_MOST_NAMED = 10  # of the pictures that failed, in the last line


@click.command("explain", cls=SectionedCommand)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@bundle_option
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Class to explain: a name, an index, or top5 for the five likeliest. Repeat it for "
    "several; all of them cost one run.  [default: top1]",
)
@engine_options
@setting_options
@click.option(
    "--input-npy",
    is_flag=True,
    help="IMAGES are .npy files of (3,H,W) float32, normalised as the model wants it.",
)
@click.option(
    "--figure",
    is_flag=True,
    help="Also write NAME.figure.png: the strongest masks and the coverage.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each picture.")
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
    """Explain IMAGES: show which parts of each picture the model's answer rests on.

    Writes three files for each picture: NAME.png (the map over the picture), NAME.npz (the arrays)
    and NAME.json (classes, settings, and which picture it is of). A second run replaces the results
    of the same picture and nothing else: where NAME is taken, the files are called NAME_2. A
    picture that cannot be read does not stop the others.

    \b
    Examples:
      vitcx explain photo.jpg --bundle vit_base --out out
      vitcx explain *.jpg --bundle vit_base --target top5 --out out
    """
    if figure:
        _need_matplotlib()
    check_out_folder(out)
    failed: list[Path] = []
    folder = ResultFolder(out, images)
    wanted = parse_targets(targets)
    with load(bundle, engine, threads, batch_size, allow_imprecise) as explainer:
        names = explainer.manifest.class_names
        resolve_targets(wanted, np.zeros(len(names), np.float32), names)  # wrong for all: said once
        results = explainer.try_explain_many(
            [ArrayFile(path) for path in images] if input_npy else images,
            wanted,
            **given_settings(settings),
        )
        with progress_bar(wanted=len(images) > 1) as progress:
            bar = progress.add_task("explaining", total=len(images))
            for image, result in zip(images, results, strict=True):
                if isinstance(result, Exception):
                    failed.append(image)
                    progress.console.print(_failure(image, result), soft_wrap=True)
                else:
                    saved = folder.save(result, image.stem or "picture", image, figure=figure)
                    _tell(image, result, saved, as_json)
                progress.advance(bar)
    if failed and len(images) > 1:
        say(f"vitcx: {len(failed)} of {len(images)} pictures failed: {_list(failed)}", err=True)
    return 2 if failed else 0


def _need_matplotlib() -> None:
    """Fail before the work, not after it."""
    from importlib.util import find_spec

    from vitcx.runtime.errors import MissingExtraError

    if find_spec("matplotlib") is None:
        raise MissingExtraError("--figure", "matplotlib", "plot")


def parse_targets(words: tuple[str, ...]) -> Any:
    """The words of --target as `resolve_targets` takes them; None where there are none."""
    return (list(words) if len(words) > 1 else words[0]) if words else None


def _failure(image: Path, error: Exception) -> str:
    message = " ".join(str(error).split())
    where = "" if str(image) in message else f"{image}: "
    return plain(f"vitcx: {where}{message}")


def _list(images: Sequence[Path]) -> str:
    named = ", ".join(f"'{image}'" for image in images[:_MOST_NAMED])
    return named + (f" and {len(images) - _MOST_NAMED} more" if len(images) > _MOST_NAMED else "")


def _tell(image: Path, result: Explanation, saved: SavedResult, as_json: bool) -> None:
    if as_json:
        files = {kind: str(path) for kind, path in saved.files.items()}
        say_json({**saved.summary, "files": files})
        return
    titles = ", ".join(result.title(i) for i in range(len(result.targets)))
    say(f"{image}: {titles} -> {saved.files['overlay']}")
