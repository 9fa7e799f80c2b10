"""Turns a model into a bundle. torch and its companions are imported when `export_model` runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitcx.export.arguments import check_references, size_of, teller
from vitcx.export.extras import require_export_extra
from vitcx.export.folders import check_target, folder_in_place_of
from vitcx.export.spec import ModelSpec
from vitcx.runtime.bundle import Bundle, read_bundle, write_manifest
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import ENCODERS, LAYERS, Manifest
from vitcx.runtime.pictures.reading import read_picture

if TYPE_CHECKING:
    from torch import nn

_logger = logging.getLogger(__name__)


def export_model(
    model: str | nn.Module,
    out: str | Path,
    *,
    spec: ModelSpec | None = None,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    weights: str | None = None,
    class_names: Sequence[str] | str | Path | None = None,
    labels: Sequence[str] | str | Path | None = None,
    img_size: int | tuple[int, int] | None = None,
    layer: str | None = None,
    stage: int | None = None,
    block: int = -1,
    head: str | None = None,
    references: Sequence[str | Path] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    crop: float | str | None = None,
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
    model : name of a timm model; ``hf:NAME`` or the folder of a model of Hugging Face transformers;
        ``clip:NAME`` with `labels`; ``torchvision:NAME``; or any module that gives logits. A module
        is put into evaluation mode; `img_size` changes it in place. One that is compiled, in
        another precision than float32 or on a GPU is copied.
    out : the bundle's folder. It appears when everything has succeeded.
    spec : where the embedding of a module is; None finds it.
    checkpoint : weights for a named model; None downloads timm's.
    num_classes : None takes those of the checkpoint or the hub.
    weights : "ema" or "raw", where a checkpoint holds both; None takes "ema", as timm does.
    class_names : C names, or the path of a file of them (see `class_files`); None takes
        those of the model's label set, or "class 0", ...
    labels : of a model with a text tower (``clip:NAME``), its classes in words, or a file of them.
    img_size : side or (H, W) in pixels; None keeps the model's own.
    layer : "norm1" (normalisation before the block's attention, as the authors' code has it),
        "attn" (output of its attention) or "block". None is norm1, or block where the block has no
        such. With a `spec`, which has its own path, only the manifest's word for it.
    stage : stage of a model that has several, from 0, negative from the end; None takes a Swin's
        second-to-last, and of others that nearest to patches of 16 pixels.
    block : block in the stage or model, from 0, negative from the end.
    head : what the outputs are: "softmax" (one class is true), "sigmoid" (labels, each for itself),
        "binary" (one logit of yes or no), "regression" (values) or "none" (features). None takes
        what the model's end or its configuration says, or softmax.
    references : pictures, with the head "none": the targets are the similarities to them. Without
        any there is one target, the norm of the features.
    mean, std : normalisation of the pictures, one number for each channel or one for all; None
        takes the model's own.
    interpolation : the resize filter, one of `vitcx.runtime.manifest.INTERPOLATIONS`; None: the
        model's own.
    crop : the share of the resized picture that a centre crop keeps, or "squash" to resize the
        whole picture to the input; None: the model's own.
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

    say = teller(_logger, report)
    target = Path(out)
    if layer is not None and layer not in LAYERS:
        raise InputError(f"layer is {layer!r}, expected one of {', '.join(LAYERS)}")
    if attention not in ("plain", "fused"):
        raise InputError(f"attention is {attention!r}, expected plain or fused")
    check_references(references, head)
    check_target(target, force)
    pictures = [Path(p) for p in check_images]
    for picture in pictures:  # before the work of minutes, not after it
        read_picture(picture)
    say("importing torch")
    require_export_extra()
    import torch

    from vitcx.export.graph.check_picture import measure_tolerances, record_check
    from vitcx.export.graph.embedding import WithEmbedding, find_site, site_of_spec
    from vitcx.export.graph.finite import check_outputs, check_weights
    from vitcx.export.graph.heads import resolve_head
    from vitcx.export.graph.last_block import prefix_tokens_only
    from vitcx.export.graph.layout import Probe, check_layout
    from vitcx.export.graph.parity import FLOAT32
    from vitcx.export.graph.shared_weights import share_weights
    from vitcx.export.graph.team_graph import choose_teams, compare_graphs, write_graphs
    from vitcx.export.graph.to_onnx import ATTENTION_OPSETS
    from vitcx.export.precision.formats import find_precision
    from vitcx.export.precision.measuring import measure_figures
    from vitcx.export.precision.reduced import write_reduced
    from vitcx.export.preprocessing import override, read_references
    from vitcx.export.sources.class_files import read_class_names
    from vitcx.export.sources.class_names import resolve_class_names
    from vitcx.export.sources.opening import open_source

    chosen = find_precision(precision)
    if encoder not in ENCODERS:
        raise InputError(f"encoder is {encoder!r}, expected one of {', '.join(ENCODERS)}")
    if isinstance(class_names, str | Path):
        class_names = read_class_names(Path(class_names))
    if isinstance(labels, str | Path):
        labels = read_class_names(Path(labels))
    size = size_of(img_size)
    source = open_source(
        model,
        spec=spec,
        checkpoint=Path(checkpoint) if checkpoint is not None else None,
        num_classes=num_classes,
        weights=weights,
        labels=labels,
        size=size,
        where=(stage, block),
        headless=head == "none",
        say=say,
    )
    module = source.module
    if source.nameless and class_names is None and head is None:
        raise InputError(
            f"nobody knows names for the {source.nameless} outputs of '{source.name}': those of a "
            "CLIP model are a projection and no classes. Give --class-names FILE, or say what they "
            "are: --head none for features, softmax for classes without names"
        )
    preprocessing = override(source.preprocessing, source.channels, mean, std, interpolation, crop)
    check_weights(module)
    probe = Probe.of(preprocessing.input_size, source.channels)
    outputs = resolve_head(
        head,
        module,
        probe.images[:2],
        guess=source.head,
        headless=source.headless,
        references=read_references(references, preprocessing),
    )
    say("looking for the patch embedding")
    if spec is not None:
        site = site_of_spec(module, spec, layer or "norm1")
    else:
        site = find_site(module, layer, stage, block, probe=probe)

    wrapped = WithEmbedding(module, site, outputs.scores)
    try:
        with torch.no_grad():
            probabilities, embedding = wrapped(probe.images[:2])
        check_outputs({"scores": probabilities, "embeddings": embedding})
        if spec is not None:
            check_layout(wrapped, probe, site.path)
        resolved = resolve_class_names(
            class_names, source.class_names, outputs, probabilities.shape[1]
        )
        say("looking for teams of tokens")
        asked = choose_teams(wrapped, probe.images.shape[1:], teams, site, say)
        with folder_in_place_of(target) as folder:
            say("writing the ONNX graph")
            exact = folder if chosen.write is None else folder.parent / "fp32"
            exact.mkdir(exist_ok=True)
            # The comparison below is with the model as it is. GPU engines are given it whole: their
            # fused attention with fewer queries than keys has not been tried.
            with (
                prefix_tokens_only(module, site.path, wrapped, probe.images[:3])
                if attention == "plain"
                else contextlib.nullcontext()
            ):
                write_graphs(wrapped, asked, probe.images.shape[1:], exact, attention)
            if asked is not None and exact is folder:
                share_weights(folder)
            say("comparing with torch")
            record = record_check(folder, wrapped, preprocessing)
            parity = compare_graphs(exact, wrapped, asked, preprocessing, FLOAT32, pictures)
            manifest = Manifest(
                **asdict(preprocessing),
                model_name=source.name,
                source=source.origin,
                layer=site.layer,
                layer_path=site.path,
                grid=(embedding.shape[2], embedding.shape[3]),
                channels=embedding.shape[1],
                token_grid=None if asked is None else asked.grid,
                class_names=resolved,
                distance_threshold=site.distance_threshold,
                opset=ATTENTION_OPSETS[attention],
                precision="fp32",
                head=outputs.name,
                target_kind=outputs.target_kind,
                # A reduced precision's float32 graph is measured against, and not kept as it lies.
                files=_digests(folder)
                if exact is folder
                else {file.name: "" for file in exact.iterdir()},
                parity=parity,
                versions=_versions(),
            )
            runnable = folder
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
            tolerances = measure_tolerances(Bundle(runnable, manifest), record)
            write_manifest(folder, replace(manifest, check_tolerances=tolerances))
    finally:
        wrapped.close()
    return read_bundle(target)


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in sorted(folder.iterdir())}


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("vitcx", "torch", "timm", "onnx", "onnxscript", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
