"""`vitcx explain`: overlay, arrays and summary for each picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
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
from vitcx.runtime.errors import InputError, MissingExtraError
from vitcx.runtime.explainer import load
from vitcx.runtime.explanation import Explanation
from vitcx.runtime.pictures.reading import ArrayFile
from vitcx.runtime.result_files import ResultFolder, SavedResult, is_result
from vitcx.runtime.targets import resolve_targets, with_against
from vitcx.sources.items import Item
from vitcx.sources.listing import list_all

_MOST_NAMED = 10  # pictures in one line


@click.command("explain", cls=SectionedCommand)
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@bundle_option
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Class to explain: a name, an index, or top5 for the five likeliest. Repeat it for "
    "several; all of them cost one run.  [default: top1]",
)
@click.option(
    "--against",
    help="Why --target and not this class: the map is the difference, from the same run.",
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
    images: tuple[str, ...],
    out: Path,
    bundle: str,
    targets: tuple[str, ...],
    against: str | None,
    engine: str,
    threads: int | None,
    batch_size: int | None,
    device: int | None,
    allow_imprecise: bool,
    input_npy: bool,
    figure: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Explain IMAGES: show which parts of each picture the model's answer rests on.

    IMAGES are files, folders (with all below them), quoted patterns, .csv or .parquet lists
    (columns path, target) and .tar shards. Writes three files for each picture: NAME.png (the map
    over the picture), NAME.npz (the arrays) and NAME.json (classes, settings, and which picture it
    is of). A second run replaces the results of the same picture and nothing else: where NAME is
    taken, the files are called NAME_2. A picture that cannot be read does not stop the others.

    \b
    Examples:
      vitcx explain photo.jpg --bundle vit_base --out out
      vitcx explain photos/ --bundle vit_base --target top5 --out out
      vitcx explain photo.jpg --target fish --against boat --out out
    """
    if figure:
        _need_matplotlib()
    check_out_folder(out)
    items = _arrays(images) if input_npy else _pictures(images, out)
    wanted = parse_targets(targets)
    if against is not None:
        wanted = with_against(wanted, against)
    failed: list[Item] = []
    folder = ResultFolder(out, [_path(item) for item in items])
    with load(bundle, engine, threads, batch_size, allow_imprecise, device) as explainer:
        names = explainer.manifest.class_names
        resolve_targets(wanted, np.zeros(len(names), np.float32), names)  # wrong for all: said once
        template = explainer.request(None, wanted, **given_settings(settings))
        results = explainer.explain_requests(
            replace(
                template,
                image=ArrayFile(_path(item)) if input_npy else item.picture(),
                targets=_targets_of(item, wanted, against),
            )
            for item in items
        )
        with progress_bar(wanted=len(items) > 1) as progress:
            bar = progress.add_task("explaining", total=len(items))
            for item, result in zip(items, results, strict=True):
                if against is not None:
                    result = _difference(result)
                if isinstance(result, Exception):
                    failed.append(item)
                    progress.console.print(_failure(item, result), soft_wrap=True)
                else:
                    stem = Path(item.name or item.path).stem or "picture"
                    saved = folder.save(result, stem, _path(item), figure=figure)
                    _tell(item, result, saved, as_json)
                progress.advance(bar)
    if failed and len(items) > 1:
        say(f"vitcx: {len(failed)} of {len(items)} pictures failed: {_list(failed)}", err=True)
    return 2 if failed else 0


def _pictures(sources: Sequence[str], out: Path) -> list[Item]:
    """The pictures of the sources, without the results of earlier runs that lie in `out`."""
    items = list_all(sources)
    folder = os.path.abspath(out)  # noqa: PTH100  (as it is named: links are not followed)
    results = [
        item
        for item in items
        if os.path.abspath(_path(item).parent) == folder and is_result(_path(item))  # noqa: PTH100
    ]
    if not results:
        return items
    say(f"vitcx: passed over {len(results)} results of earlier runs: {_list(results)}", err=True)
    passed = set(results)
    left = [item for item in items if item not in passed]
    if not left:
        raise InputError(f"there is nothing but results of earlier runs: {_list(results)}")
    return left


def _arrays(sources: Sequence[str]) -> list[Item]:
    """The .npy files of the sources: files, and folders with all below them."""
    items = []
    for source in map(Path, sources):
        found = sorted(source.rglob("*.npy")) if source.is_dir() else [source]
        if not found:
            raise InputError(f"'{source}' holds no .npy files")
        items += [Item(str(path), name=path.name) for path in found]
    return items


def _path(item: Item) -> Path:
    return Path(item.root, item.path)


def _need_matplotlib() -> None:
    """Fail before the work, not after it."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError("--figure", "matplotlib", "plot")


def parse_targets(words: tuple[str, ...]) -> Any:
    """The words of --target as `resolve_targets` takes them; None where there are none."""
    return (list(words) if len(words) > 1 else words[0]) if words else None


def _targets_of(item: Item, wanted: Any, against: str | None) -> Any:
    """The targets of a picture: its own, if its list has one."""
    if item.target is None:
        return wanted
    return item.target if against is None else with_against(item.target, against)


def _difference(result: Explanation | Exception) -> Explanation | Exception:
    """Of an explanation whose last target is the class that the others are held against."""
    try:
        return result if isinstance(result, Exception) else result.minus()
    except InputError as error:
        return error


def _failure(item: Item, error: Exception) -> str:
    message = " ".join(str(error).split())
    where = "" if item.path in message else f"{item.path}: "
    return plain(f"vitcx: {where}{message}")


def _list(items: Sequence[Item]) -> str:
    named = ", ".join(f"'{item.path}'" for item in items[:_MOST_NAMED])
    return named + (f" and {len(items) - _MOST_NAMED} more" if len(items) > _MOST_NAMED else "")


def _tell(item: Item, result: Explanation, saved: SavedResult, as_json: bool) -> None:
    if as_json:
        files = {kind: str(path) for kind, path in saved.files.items()}
        say_json({**saved.summary, "files": files})
        return
    titles = ", ".join(result.title(i) for i in range(len(result.targets)))
    say(f"{item.path}: {titles} -> {saved.files['overlay']}")
    for remark in result.remarks:
        say(f"vitcx: {item.path}: {remark}", err=True)
