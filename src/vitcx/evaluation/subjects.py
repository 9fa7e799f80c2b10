"""The pictures of an evaluation, with what is known of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcx.evaluation.boxes import Annotation, box_mask, boxes_in_frame
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import Manifest
from vitcx.runtime.pictures.preprocess import normalise, prepare
from vitcx.runtime.targets import resolve_targets
from vitcx.sources.items import Box, Item
from vitcx.sources.listing import list_all

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Subject:
    """A picture as every method gets it.

    Attributes
    ----------
    name : unique in its evaluation.
    pixels : (3,H,W) float32, normalised.
    target : the class to explain; None is the model's likeliest.
    boxes : in pixels of `pixels`; empty where none is known.
    truth : (H,W) True where the object is; None where not known.
    """

    name: str
    pixels: FloatArray
    target: int | None = None
    boxes: Sequence[Box] = field(default_factory=tuple)
    truth: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Listed:
    """A picture that is not read yet: its name, unique in its evaluation, and what is known."""

    name: str
    item: Item
    known: Annotation


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The picture files of files, folders (all below them), patterns and lists.

    Raises
    ------
    InputError
        If a source has none, two files have one name, or a picture lies in an archive.
    """
    items = list_all(paths)
    if any(item.member is not None for item in items):
        raise InputError("pictures in .tar archives are not taken here: give files or folders")
    found = [Path(item.path) for item in items]
    names = [path.name for path in found]
    if len(set(names)) < len(names):
        raise InputError("two pictures have the same file name: evaluate their folders apart")
    return found


def list_pictures(
    items: Sequence[Item],
    annotations: Mapping[str, Annotation],
    class_names: Sequence[str],
    *,
    explain_label: bool = False,
) -> list[Listed]:
    """Names for the pictures of a source, and what lists and annotations know of them.

    A picture is called by its path in its source, or by its whole path where two share one. Lines
    of a list that name one file are its boxes.

    Parameters
    ----------
    annotations : by name or by file name; they go before what the source itself says.
    class_names : of the model.
    explain_label : leave out pictures whose class is not known.

    Raises
    ------
    InputError
        If an annotation fits several pictures, or a class does not exist.
    """
    merged: dict[str, Listed] = {}
    short = Counter(name for _, name in {(item.path, item.name) for item in items})
    for item in items:
        name = item.name if item.name and short[item.name] == 1 else item.path
        index = _class_index(item, class_names)
        before = merged.get(name, Listed(name, item, Annotation(index))).known
        if before.class_index != index:
            raise InputError(f"'{name}' is listed twice, with different classes")
        boxes = (*before.boxes, item.box) if item.box else before.boxes
        merged[name] = Listed(name, item, Annotation(index, boxes))
    files = Counter(Path(name).name for name in merged)
    result = []
    for one in merged.values():
        file = Path(one.name).name
        if one.name not in annotations and file in annotations and files[file] > 1:
            raise InputError(
                f"the annotation of '{file}' fits {files[file]} pictures: give their paths, such "
                f"as '{one.name}'"
            )
        known = annotations.get(one.name) or annotations.get(file) or one.known
        if known.class_index is not None or not explain_label:
            result.append(replace(one, known=known))
    return result


def _class_index(item: Item, class_names: Sequence[str]) -> int | None:
    if item.target is None:
        return None
    rising = np.arange(len(class_names), dtype=np.float32)
    found = {resolve_targets(item.target, scores, class_names) for scores in (rising, -rising)}
    if len(found) != 1 or len(next(iter(found))) != 1:
        raise InputError(f"'{item.path}' has the target {item.target!r}: give one class")
    return next(iter(found))[0]


def read_subjects(
    listed: Iterable[Listed],
    manifest: Manifest,
    *,
    explain_label: bool = False,
    squash: bool = False,
    refused: Callable[[Listed, InputError], None] | None = None,
) -> Iterator[Subject]:
    """Subjects of pictures, each read when its turn comes.

    Parameters
    ----------
    explain_label : the target is the known class, not the model's likeliest.
    squash : resize to the input size without a crop, so that no box is cut.
    refused : told of a picture that cannot be read, which is left out; without, it is raised.
    """
    if squash:
        manifest = replace(manifest, crop_mode="squash", crop_fraction=1.0)
    for one in listed:
        try:
            prepared = prepare(one.item.picture(), manifest)
        except InputError as error:
            if refused is None:
                raise
            refused(one, error)
            continue
        boxes = boxes_in_frame(one.known.boxes, prepared.box, manifest.input_size)
        yield Subject(
            one.name,
            prepared.pixels,
            one.known.class_index if explain_label else None,
            boxes,
            box_mask(boxes, manifest.input_size) if boxes else None,
        )


def picture_subjects(
    pictures: Sequence[Path],
    manifest: Manifest,
    annotations: Mapping[str, Annotation],
    *,
    explain_label: bool = False,
    squash: bool = False,
) -> Iterator[Subject]:
    """Subjects of files: `list_pictures` and `read_subjects` in one; what fails is raised."""
    items = [Item(str(path), name=path.name) for path in pictures]
    listed = list_pictures(items, annotations, manifest.class_names, explain_label=explain_label)
    return read_subjects(listed, manifest, explain_label=explain_label, squash=squash)


def scene_subjects(manifest: Manifest, count: int) -> Iterator[Subject]:
    """Drawn scenes that the embedded model has never seen: each object is a subject of its own.

    The truth is the object's exact pixels. The bundle must be the embedded one.
    """
    from vitcx.runtime.demo.scenes import CLASS_NAMES, FIRST_FRESH_SEED, SIZE, make_scene

    if manifest.input_size != (SIZE, SIZE) or manifest.class_names != CLASS_NAMES:
        raise InputError(
            "without pictures, evaluate takes drawn scenes, which only the bundle 'demo' knows: "
            "give pictures"
        )
    for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + count):
        scene = make_scene(seed)
        pixels = normalise(scene.image, manifest)
        for thing in scene.objects:
            x0, y0, x1, y1 = (float(edge) for edge in thing.box)
            yield Subject(
                f"scene_{seed}_{thing.class_name}",
                pixels,
                thing.class_index,
                [(x0, y0, x1, y1)],
                thing.mask,
            )
