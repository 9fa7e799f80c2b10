"""The pictures of an evaluation, with what is known of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitcx.evaluation.boxes import Annotation, Box, box_mask, boxes_in_frame
from vitcx.runtime.bundle import Manifest
from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures.preprocess import normalise, prepare

FloatArray = NDArray[np.float32]
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


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


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the pictures directly in them, by name."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES]
            if not inside:
                raise InputError(f"no pictures in the folder '{path}'")
            found += sorted(inside)
        else:
            found.append(path)
    names = [path.name for path in found]
    if len(set(names)) < len(names):
        raise InputError("two pictures have the same file name: evaluate their folders apart")
    return found


def picture_subjects(
    pictures: Sequence[Path],
    manifest: Manifest,
    annotations: Mapping[str, Annotation],
    *,
    explain_label: bool = False,
    squash: bool = False,
) -> Iterator[Subject]:
    """Subjects of files.

    Parameters
    ----------
    annotations : by file name.
    explain_label : the target is the annotated class, not the model's likeliest; a picture without
        one is left out.
    squash : resize to the input size without a crop, so that no box is cut.
    """
    if squash:
        manifest = replace(manifest, crop_mode="squash", crop_fraction=1.0)
    for path in pictures:
        known = annotations.get(path.name, Annotation())
        if explain_label and known.class_index is None:
            continue
        prepared = prepare(path, manifest)
        boxes = boxes_in_frame(known.boxes, prepared.box, manifest.input_size)
        yield Subject(
            path.name,
            prepared.pixels,
            known.class_index if explain_label else None,
            boxes,
            box_mask(boxes, manifest.input_size) if boxes else None,
        )


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
