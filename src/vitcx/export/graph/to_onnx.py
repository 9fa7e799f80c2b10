"""Writes a torch module as one ONNX graph with a dynamic batch."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import nn

from vitcx.export.graph.attention_axes import four_axes
from vitcx.export.graph.window_attention import windows_as_heads
from vitcx.export.quiet import only_errors_from
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import (
    EMBEDDING,
    INPUT,
    MODEL_NAME,
    PATCHES,
    PICTURES,
    PROBABILITIES,
    TEAMS_NAME,
    TOKENS,
)

# How an attention is written -> opset of the graph. "plain" takes it apart into products and a
# softmax; "fused" is one node each, of which an engine makes one kernel if it has it.
ATTENTION_OPSETS = {"plain": 20, "fused": 23}
OUTPUTS = (PROBABILITIES, EMBEDDING)

# A protobuf file ends at 2 GiB. The graph beside the weights is small; this leaves it 148 MB.
_ONE_FILE_BYTES = 2_000_000_000
# The version of the file format that came with opset 23; torch writes an older one.
_FUSED_IR_VERSION = 11
# Before the outputs' names while torch writes the graph: none of its own values is called so.
_OURS = "vitcx."
# Said by torch to itself while it exports; none is about the model.
_TORCH_CHATTER = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"# The axis name: \w+ will not be used",  # two inputs have the same batch
)
# Warns of nodes that it leaves as they are.
_CHATTING_LOGGER = "onnxscript.optimizer._constant_folding"


def write_onnx(
    module: nn.Module,
    shape: Sequence[int],
    folder: Path,
    attention: str = "plain",
    outputs: Sequence[str] = OUTPUTS,
) -> tuple[str, ...]:
    """Write `module` to ``model.onnx`` in `folder`, with external data only above 2 GB.

    Parameters
    ----------
    module : images (B,channels,H,W) float32 to (probabilities, embedding), in evaluation mode.
    shape : (channels, H, W) of an image; only the batch is dynamic.
    folder : exists.
    attention : "plain" or "fused", which needs torch's `scaled_dot_product_attention`.
    outputs : names of what the module gives.

    Returns
    -------
    tuple of str
        Names of the files written.

    Raises
    ------
    InputError
        If torch cannot express the module as a graph, or finds no attention to fuse.
    """
    # Two images: torch would take a batch of one for a constant.
    images = torch.zeros(2, *shape)
    axes = ({0: torch.export.Dim("batch")},)
    program = _export(module, {INPUT: images}, axes, outputs, attention)
    save_graph(program.model, folder / MODEL_NAME)
    return tuple(sorted(file.name for file in folder.iterdir()))


def write_teams_onnx(
    teams: nn.Module, tokens: tuple[int, int], prefix: int, folder: Path, attention: str = "plain"
) -> None:
    """Write the graph that scores teams to ``teams.onnx`` in `folder`.

    Parameters
    ----------
    teams : tokens (P,T,W), pictures (B,) and patches (B,n) to probabilities (B,C); P, B and n are
        the graph's dynamic axes.
    tokens : (T, W).
    prefix : how many of the T are no patches; at least two are.
    folder : exists.
    attention : as in `write_onnx`.

    Raises
    ------
    InputError
        As `write_onnx` does.
    """
    kept = max(2, (tokens[0] - prefix) // 2)
    examples = {
        TOKENS: torch.zeros(2, *tokens),
        PICTURES: torch.tensor([0, 1, 1]),
        PATCHES: torch.arange(kept).repeat(3, 1),
    }
    batch, count, size = (torch.export.Dim(name) for name in ("batch", "count", "size"))
    axes = ({0: count}, {0: batch}, {0: batch, 1: size})
    program = _export(teams, examples, axes, (PROBABILITIES,), attention)
    save_graph(program.model, folder / TEAMS_NAME)


def _export(
    module: nn.Module,
    examples: dict[str, torch.Tensor],
    axes: Sequence[Any],
    outputs: Sequence[str],
    attention: str,
) -> Any:
    """torch's ONNX program of `module`, without what an engine has no use for."""
    try:
        with _without_chatter(), torch.no_grad(), four_axes(), _attention_of(module, attention):
            program = torch.onnx.export(
                module,
                tuple(examples.values()),
                dynamo=True,
                input_names=list(examples),
                output_names=[f"{_OURS}{name}" for name in outputs],
                dynamic_shapes=tuple(axes),
                opset_version=ATTENTION_OPSETS[attention],
                verbose=False,
            )
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"torch cannot make a graph of the model ({_reason(error)}): its forward pass must "
            "take any batch and not depend on pixel values"
        ) from error
    if program is None:
        raise InputError("torch gave no graph: install the torch and onnxscript of vitcx[export]")
    if attention == "fused":
        if not any(node.op_type == "Attention" for node in program.model.graph):
            raise InputError(
                "the model's attention is not torch's scaled_dot_product_attention, so none can "
                "be written as one node: export it with plain attention"
            )
        program.model.ir_version = max(program.model.ir_version, _FUSED_IR_VERSION)
    _name_outputs(program.model.graph)
    _drop_empty_pads(program.model.graph)
    _drop_traces(program.model)
    return program


def save_graph(model: Any, path: Path) -> None:
    """Write an onnx_ir model to `path`, its weights beside it in ``PATH.data`` only above 2 GB."""
    if is_large(model):
        onnx_ir.save(model, path, external_data=f"{path.name}.data")
    else:  # weights that lie in a file elsewhere come with it
        onnx_ir.save(onnx_ir.external_data.load_to_model(model), path)


def is_large(model: Any) -> bool:
    """Whether the weights of an onnx_ir model need a file of their own."""
    weights = model.graph.initializers.values()
    return bool(sum(weight.const_value.nbytes for weight in weights) > _ONE_FILE_BYTES)


@contextlib.contextmanager
def _attention_of(module: nn.Module, attention: str) -> Iterator[None]:
    """For "fused", let timm's modules call torch's attention, also where that is not its default.

    Swin's windows have such a switch too, which timm leaves off, and a form that suits engines.
    """
    switches = [m for m in module.modules() if isinstance(getattr(m, "fused_attn", None), bool)]
    before = [m.fused_attn for m in switches]
    try:
        with contextlib.ExitStack() as form:
            if attention == "fused":
                for m in switches:
                    m.fused_attn = True  # type: ignore[assignment]
                form.enter_context(windows_as_heads(module))
            yield
    finally:
        for m, value in zip(switches, before, strict=True):
            m.fused_attn = value


def _name_outputs(graph: Any) -> None:
    """Give the outputs their names, and others to what torch has called the same.

    It calls the weights of an `nn.Embedding` `embedding`, and two values of a name are no graph.
    """
    wanted = {value: value.name.removeprefix(_OURS) for value in graph.outputs}
    names = set(wanted.values())
    inner = [output for node in graph for output in node.outputs]
    for value in (*graph.initializers.values(), *inner):
        if value.name in names and value not in wanted:
            value.name = f"{value.name}_inner"
    for value, name in wanted.items():
        value.name = name


def _drop_empty_pads(graph: Any) -> None:
    """Take out padding by nothing, a copy of the tensor: Swin pads before each window and merging.

    ONNX Runtime runs them as they are, and 1.24's CUDA provider has no kernel for such a node.
    """
    for node in [node for node in graph if node.op_type == "Pad"]:
        whole, amounts, *_ = node.inputs
        padded = node.outputs[0]
        known = onnx_ir.convenience.get_const_tensor(amounts)
        if known is None or known.numpy().any() or padded.is_graph_output():
            continue
        onnx_ir.convenience.replace_all_uses_with(padded, whole)
        graph.remove(node, safe=True)
        if not amounts.uses():
            graph.initializers.pop(amounts.name, None)


def _drop_traces(model: Any) -> None:
    """Take out what torch notes of each node: stack traces with the exporting machine's paths."""
    model.metadata_props.clear()
    graphs = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *getattr(graph, "initializers", {}).values()):
            value.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()


def _reason(error: BaseException) -> str:
    """First line of what started it all: torch wraps the cause in a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    with warnings.catch_warnings(), only_errors_from(_CHATTING_LOGGER):
        for message in _TORCH_CHATTER:
            warnings.filterwarnings("ignore", message=message)
        yield
