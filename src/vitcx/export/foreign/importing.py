"""Turns an ONNX file into a bundle. onnx and ONNX Runtime are imported when `import_onnx` runs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from vitcx.export.arguments import check_references, size_of, teller
from vitcx.export.folders import check_target, folder_in_place_of
from vitcx.runtime.bundle import Bundle, read_bundle, write_manifest
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.errors import InputError, MissingExtraError
from vitcx.runtime.manifest import MODEL_NAME, Manifest
from vitcx.runtime.onnx_runtime import import_onnxruntime
from vitcx.runtime.pictures.reading import read_picture

_logger = logging.getLogger(__name__)


def import_onnx(
    path: str | Path,
    out: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | str | None = None,
    interpolation: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    layer: str | None = None,
    stage: int | None = None,
    block: int = -1,
    output: str | None = None,
    head: str | None = None,
    references: Sequence[str | Path] = (),
    class_names: Sequence[str] | str | Path | None = None,
    check_images: Sequence[str | Path] = (),
    force: bool = False,
    report: Callable[[str], None] | None = None,
) -> Bundle:
    """Make a bundle of somebody's ONNX file, without PyTorch.

    The graph is searched for its attentions; the embedding is the normalisation before the last one
    whose patches lie in the picture as a grid. Half precision becomes float32, and a fixed batch is
    made dynamic. The result is compared with the file before it is kept.

    Parameters
    ----------
    path : of the file. Weights may lie in files beside it.
    out : the bundle's folder. It appears when everything has succeeded.
    mean, std : normalisation of the pictures' values in [0, 1], one number for each channel or one
        for all. Left out where the graph normalises pictures itself.
    crop : the share of the resized picture that a centre crop keeps, or "squash" to resize the
        whole picture to the input.
    interpolation : the resize filter, one of `vitcx.runtime.manifest.INTERPOLATIONS`.
    img_size : side or (H, W) in pixels, where the graph takes several.
    layer : "norm1" (the normalisation before the block's attention), "attn" (what its attention
        adds), "block" (the block's output), or the name of a node or value of the graph. None is
        norm1, or block where the block has no such.
    stage : of the resolutions found, from the finest; None takes that nearest to patches of 16
        pixels.
    block : of the blocks of that resolution, from 0, negative from the end.
    output : name of the output with the answers, where there are several.
    head : as of `export_model`; None takes what the graph's end says.
    references : pictures, with the head "none": the targets are the similarities to them.
    class_names : C names, or the path of a file of them; None makes "class 0", ...
    check_images : pictures to compare on, beside drawn ones.
    force : replace a bundle at `out`.
    report : told each step in a few words.

    Returns
    -------
    Bundle
        What was written, read back.

    Raises
    ------
    InputError
        For a file or setting that cannot become a bundle, and what is not known of the pictures.
    BundleError
        If the bundle's graph does not compute what the file does: nothing is left at `out`.
    MissingExtraError
        If onnx or ONNX Runtime (the extra ``onnx``) is missing.
    """

    say = teller(_logger, report)
    target, file = Path(out), Path(path)
    check_references(references, head)
    check_target(target, force)
    for picture in (*check_images, *references):
        read_picture(Path(picture))
    require_onnx_extra()
    from vitcx.export.foreign.bundle_graph import save
    from vitcx.export.foreign.checking import compare
    from vitcx.export.foreign.reading import opset_of, read_graph
    from vitcx.export.foreign.study import Study
    from vitcx.export.sources.class_files import read_class_names
    from vitcx.runtime.check_record import write_record

    if isinstance(class_names, str | Path):
        class_names = read_class_names(Path(class_names))
    size = size_of(img_size)
    say("reading the file")
    model = read_graph(file)
    with folder_in_place_of(target) as folder:
        scratch = folder.parent / "scratch"
        scratch.mkdir()
        study = Study(model, file, scratch, say)
        study.find_input(output, size)
        preprocessing = study.resolve_pictures(mean, std, interpolation, crop)
        study.find_head(head, [Path(picture) for picture in references])
        found = study.find_place(layer, stage, block)
        names = _class_names(class_names, study.head)
        built = study.build()
        opset = opset_of(built)
        save(built, scratch, folder / MODEL_NAME)
        say("comparing with the file")
        parity, record = compare(
            folder / MODEL_NAME,
            study.original(),
            study.squares,
            [Path(picture) for picture in check_images],
        )
        write_record(folder, record)
        manifest = Manifest(
            **asdict(preprocessing),
            model_name=file.name,
            source=f"ONNX file {file.name}{study.notes()}",
            layer=found.place.layer,
            layer_path=found.place.value,
            grid=found.place.grid,
            channels=found.place.channels,
            class_names=names,
            distance_threshold=found.distance_threshold,
            opset=opset,
            precision="fp32",
            head=study.head.name,
            target_kind=study.head.target_kind,
            files={f.name: sha256_of(f) for f in sorted(folder.iterdir())},
            parity=parity,
            versions=_versions(),
        )
        write_manifest(folder, manifest)
    return read_bundle(target)


def is_onnx_file(model: str) -> bool:
    """Whether what a user calls a model is the path of an ONNX file."""
    return model.lower().endswith(".onnx")


def require_onnx_extra() -> None:
    """Import what the extra ``onnx`` installs; `MissingExtraError` for what is missing."""
    import_onnxruntime("vitcx export of an ONNX file", "onnx")
    try:
        importlib.import_module("onnx")
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise MissingExtraError("vitcx export of an ONNX file", "onnx", "onnx") from None


def _class_names(names: Sequence[str] | None, head: Any) -> tuple[str, ...]:
    default = cast("tuple[str, ...]", head.default_names)
    if names is None:
        return default
    if len(names) != len(default):
        raise InputError(f"{len(names)} class names, and the graph gives {len(default)} scores")
    return tuple(names)


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("vitcx", "onnx", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
