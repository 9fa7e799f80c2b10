"""Turns a model into a bundle. torch and its companions are imported when `export_model` runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcx.export.extras import require_export_extra
from vitcx.export.sources.spec import ModelSpec
from vitcx.runtime.bundle import (
    ENCODERS,
    LAYERS,
    MANIFEST_NAME,
    Bundle,
    Manifest,
    read_bundle,
    write_manifest,
)
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.errors import InputError
from vitcx.runtime.pictures.reading import read_picture

_logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import Tensor, nn


def export_model(
    model: str | nn.Module,
    out: str | Path,
    *,
    spec: ModelSpec | None = None,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | str | Path | None = None,
    img_size: int | tuple[int, int] | None = None,
    layer: str = "norm1",
    stage: int | None = None,
    block: int = -1,
    precision: str = "fp32",
    encoder: str = "fp32",
    attention: str = "plain",
    teams: bool | None = None,
    check_images: Sequence[str | Path] = (),
    force: bool = False,
    report: Callable[[str], None] | None = None,
) -> Bundle:
    """Export a model, check it against torch, and write a bundle.

    Parameters
    ----------
    model : name of a timm model, a timm module, or any module that gives logits, with a `spec`. A
        module is put into evaluation mode; `img_size` changes it in place.
    out : the bundle's folder. It appears when everything has succeeded.
    spec : where the embedding of a module is that is not from timm.
    checkpoint : weights for a named model; None downloads timm's.
    num_classes : None takes those of the checkpoint or the hub.
    class_names : C names, or the path of a file of them (a JSON list, or one a line); None takes
        those of the model's label set, or "class 0", ...
    img_size : side or (H, W) in pixels; None keeps the model's own.
    layer : "norm1" (input normalisation of the block, as the authors' code has it), "attn" (output
        of its attention) or "block". With a `spec`, which has its own path, only the manifest's
        word for it.
    stage : stage of a Swin, from 0, negative from the end; None takes the second-to-last.
    block : block in the stage or model, from 0, negative from the end.
    precision : "fp32", "fp16", "bf16" or "int8". What a reduced one costs is measured against fp32
        and kept in the manifest; `vitcx.load` refuses one that costs too much.
    encoder : beside a reduced precision, "fp32" adds the float32 graph, which encodes each picture
        once: the masks are float32's, and the reduced graph scores them. "same" leaves it out:
        smaller, and other masks.
    attention : "plain", or "fused": each attention one ONNX node (opset 23) for GPU engines. ONNX
        Runtime's CPU provider is slower with it.
    teams : whether to write the graph that scores teams of patches by their tokens alone; None:
        where the model allows it.
    check_images : photographs to compare on, beside noise and drawn scenes. A reduced precision is
        measured on them alone; some twenty make figures worth having.
    force : replace a bundle at `out`.
    report : told each step in a few words.

    Returns
    -------
    Bundle
        What was written, read back.

    Raises
    ------
    InputError
        For a model, weights or setting that cannot be exported.
    BundleError
        If the graph is not the model's: nothing is left at `out`.
    MissingExtraError
        If torch, timm or what else the extra ``export`` installs is missing.
    """

    def say(step: str) -> None:
        _logger.info("%s", step)
        if report is not None:
            report(step)

    target = Path(out)
    if layer not in LAYERS:
        raise InputError(f"layer is {layer!r}, expected one of {', '.join(LAYERS)}")
    if attention not in ("plain", "fused"):
        raise InputError(f"attention is {attention!r}, expected plain or fused")
    _check_target(target, force)
    pictures = [Path(p) for p in check_images]
    for picture in pictures:  # before the work of minutes, not after it
        read_picture(picture)
    say("importing torch")
    require_export_extra()

    from vitcx.export.graph.embedding import WithEmbedding, find_site, site_of_spec
    from vitcx.export.graph.last_block import prefix_tokens_only
    from vitcx.export.graph.parity import FLOAT32
    from vitcx.export.graph.shared_weights import share_weights
    from vitcx.export.graph.team_graph import choose_teams, compare_graphs, write_graphs
    from vitcx.export.graph.to_onnx import ATTENTION_OPSETS
    from vitcx.export.precision.formats import find_precision
    from vitcx.export.precision.measuring import measure_figures
    from vitcx.export.precision.reduced import write_reduced
    from vitcx.export.sources.class_names import read_class_names, resolve_class_names
    from vitcx.export.sources.preprocessing import preprocessing_of_spec, preprocessing_of_timm
    from vitcx.export.sources.timm_models import resize, timm_model

    chosen = find_precision(precision)
    if encoder not in ENCODERS:
        raise InputError(f"encoder is {encoder!r}, expected one of {', '.join(ENCODERS)}")
    if isinstance(class_names, str | Path):
        class_names = read_class_names(Path(class_names))
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise InputError(f"img_size is {img_size!r}, expected a positive side or (H, W)")
    if isinstance(model, str):
        if spec is not None:
            raise InputError("a spec goes with a module: leave it out for a model by name")
        say(f"making {model}" + ("" if checkpoint else ", with weights from the hub"))
        module, source = timm_model(
            model, Path(checkpoint) if checkpoint else None, num_classes, size
        )
        name = model
    else:
        module = model
        _check_module_arguments(checkpoint, num_classes, spec, size, stage, block)
        if size is not None:
            resize(module, size)
        source = f"module: {type(module).__module__}.{type(module).__qualname__}"
        config: dict[str, Any] = getattr(module, "pretrained_cfg", None) or {}
        name = (spec and spec.name) or config.get("architecture") or type(module).__name__

    if spec is not None:
        site, preprocessing = site_of_spec(module, spec), preprocessing_of_spec(spec)
        names = class_names if class_names is not None else spec.class_names
    else:
        site, preprocessing = find_site(module, layer, stage, block), preprocessing_of_timm(module)
        names = class_names

    wrapped = WithEmbedding(module, site)
    try:
        probabilities, embedding = _dry_run(wrapped, preprocessing.input_size)
        resolved = resolve_class_names(names, module, probabilities.shape[1])
        say("looking for teams of tokens")
        asked = choose_teams(wrapped, preprocessing.input_size, teams, say)
        with _folder_in_place_of(target) as folder:
            say("writing the ONNX graph")
            exact = folder if chosen.write is None else folder.parent / "fp32"
            exact.mkdir(exist_ok=True)
            # The comparison below is with the model as it is. GPU engines are given it whole: their
            # fused attention with fewer queries than keys has not been tried.
            with (
                prefix_tokens_only(module, site.path)
                if attention == "plain"
                else contextlib.nullcontext()
            ):
                write_graphs(wrapped, asked, preprocessing.input_size, exact, attention)
            if asked is not None and exact is folder:
                share_weights(folder)
            say("comparing with torch")
            parity = compare_graphs(exact, wrapped, asked, preprocessing, FLOAT32, pictures)
            manifest = Manifest(
                **asdict(preprocessing),
                model_name=name,
                source=source,
                layer=layer,
                layer_path=site.path,
                grid=(embedding.shape[2], embedding.shape[3]),
                channels=embedding.shape[1],
                token_grid=None if asked is None else asked.grid,
                class_names=resolved,
                distance_threshold=site.distance_threshold,
                opset=ATTENTION_OPSETS[attention],
                precision="fp32",
                # A reduced precision's float32 graph is measured against, and not kept as it lies.
                files=_digests(folder)
                if exact is folder
                else {file.name: "" for file in exact.iterdir()},
                parity=parity,
                versions=_versions(),
            )
            if chosen.write is not None:
                say(f"converting to {precision}")
                runnable = write_reduced(chosen, exact, folder, folder.parent, encoder)
                say(f"comparing {precision} with torch")
                rough = compare_graphs(
                    runnable, wrapped, asked, preprocessing, chosen.tolerance, pictures
                )
                if encoder == "fp32":  # the embedding is the float32 graph's
                    exactly = ("embedding", "tokens")
                    rough |= {k: v for k, v in parity.items() if k.startswith(exactly)}
                reference = Bundle(exact, manifest)
                manifest = replace(
                    manifest, precision=precision, files=_digests(folder), parity=rough
                )
                figures = measure_figures(
                    reference,
                    Bundle(runnable, manifest),
                    pictures,
                    lambda done, of: say(f"measuring {precision}: {done} of {of} images"),
                )
                manifest = replace(manifest, precision_figures=figures)
            write_manifest(folder, manifest)
    finally:
        wrapped.close()
    return read_bundle(target)


def _check_module_arguments(
    checkpoint: str | Path | None,
    num_classes: int | None,
    spec: ModelSpec | None,
    size: tuple[int, int] | None,
    stage: int | None,
    block: int,
) -> None:
    """Refuse what a module in memory has settled already."""
    if checkpoint is not None or num_classes is not None:
        raise InputError(
            "checkpoint and num_classes go with a model by name: a module is exported as it is; "
            "load its weights first"
        )
    if spec is not None and size is not None:
        raise InputError("img_size and a spec: give the size in the spec, input_size=(H, W)")
    if spec is not None and (stage is not None or block != -1):
        raise InputError("stage and block choose a layer, and so does a spec: leave them out")


def _dry_run(wrapped: Callable[[Tensor], tuple[Tensor, Tensor]], size: tuple[int, int]) -> Any:
    """Probabilities (2,C) and embedding (2,D,h,w) of two grey pictures; says why it cannot run."""
    import torch

    try:
        with torch.no_grad():
            return wrapped(torch.zeros(2, 3, *size))
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the model does not run on two {size[0]}x{size[1]} pictures: {reason}"
        ) from error


def _check_target(target: Path, force: bool) -> None:
    """Refuse a folder that holds something, unless it is a bundle and `force` is set."""
    if target.is_dir():
        occupied = any(target.iterdir())
        if occupied and not force:
            raise InputError(f"'{target}' is not empty: choose another folder, or give --force")
        if occupied and not (target / MANIFEST_NAME).is_file():
            raise InputError(f"'{target}' is not empty and no bundle: choose another folder")
    elif target.exists() or target.is_symlink():
        raise InputError(f"'{target}' is a file: choose another folder")


@contextlib.contextmanager
def _folder_in_place_of(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` that takes its place on success and is removed if not.

    What was at `target` is there until the new folder is complete.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        folder = holder / "new"
        folder.mkdir()  # not the holder itself, which mkdtemp makes private
        yield folder
        if target.exists():
            target.replace(holder / "old")
        folder.replace(target)
    except BaseException:
        # A replaced bundle goes back if its successor did not make it.
        if (holder / "old").exists() and not target.exists():
            (holder / "old").replace(target)
        raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in sorted(folder.iterdir())}


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("vitcx", "torch", "timm", "onnx", "onnxscript", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
