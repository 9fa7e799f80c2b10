"""What a bundle's graph takes and gives: checked once, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitcx.runtime.bundle import Bundle
from vitcx.runtime.errors import BundleError
from vitcx.runtime.manifest import (
    EMBEDDING,
    INPUT,
    PATCHES,
    PICTURES,
    PROBABILITIES,
    TOKENS,
    Manifest,
)

# A size that may be anything.
ANY = -1


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph, as an engine describes it.

    Attributes
    ----------
    name : as the graph has it.
    dtype : NumPy's name of the element type.
    shape : the size of each axis, None where it is known only when the graph runs.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("any" if size in (None, ANY) else str(size) for size in self.shape)
        return f"'{self.name}' {self.dtype} ({sizes})"


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a graph. The first axis of each is the batch."""

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]


def interface_of(manifest: Manifest) -> Interface:
    """That of ``model.onnx`` and of ``encoder.onnx``."""
    return Interface(
        inputs=(
            GraphTensor(INPUT, "float32", (None, manifest.input_channels, *manifest.input_size)),
        ),
        outputs=(
            GraphTensor(PROBABILITIES, "float32", (None, manifest.num_classes)),
            GraphTensor(EMBEDDING, "float32", (None, manifest.channels, *manifest.grid)),
        ),
    )


def interface_of_teams(manifest: Manifest) -> Interface:
    """That of ``teams.onnx``; the manifest does not say how many tokens there are, and how wide."""
    return Interface(
        inputs=(
            GraphTensor(TOKENS, "float32", (None, ANY, ANY)),
            GraphTensor(PICTURES, "int64", (None,)),
            GraphTensor(PATCHES, "int64", (None, None)),
        ),
        outputs=(GraphTensor(PROBABILITIES, "float32", (None, manifest.num_classes)),),
    )


def interfaces_of(bundle: Bundle) -> tuple[Interface, Interface, Interface | None]:
    """What is expected of the graph that scores, the one that encodes, and the one for teams.

    The first two may be the same graph. The one that encodes gives tokens too where there are
    teams.
    """
    plain = interface_of(bundle.manifest)
    if not bundle.has_teams:
        return plain, plain, None
    tokens = GraphTensor(TOKENS, "float32", (None, ANY, ANY))
    encodes = Interface(plain.inputs, (*plain.outputs, tokens))
    scores = encodes if bundle.encoder is bundle else plain
    return scores, encodes, interface_of_teams(bundle.manifest)


def token_shape_of(graph: str, interface: Interface) -> tuple[int, ...]:
    """(T,W) of the tokens that a graph takes or gives; () if it does neither.

    Raises
    ------
    BundleError
        They are known only when the graph runs, and their buffers are made before.
    """
    for tensor in (*interface.inputs, *interface.outputs):
        if tensor.name == TOKENS:
            known = tuple(size for size in tensor.shape[1:] if size is not None)
            if len(known) != 2:
                raise BundleError(
                    f"{graph} has {tensor}, and the sizes of tokens must be known before it runs: "
                    "export the model again"
                )
            return known
    return ()


def check_interface(
    graph: str,
    found: Interface,
    expected: Interface,
    *,
    all_sizes_known: bool = False,
    more_outputs: bool = True,
) -> None:
    """Raise `BundleError` unless a graph has the interface that the manifest gives it.

    Parameters
    ----------
    graph : what to call it in the message, such as the path of its file.
    found, expected : the batch must be variable in both; any other size that is known must be the
        expected one.
    all_sizes_known : refuse a size that is known only when the graph runs: an engine that lends the
        graph buffers of the expected sizes would have it write past their end.
    more_outputs : whether the graph may give more than is expected.
    """
    for verb, mine, theirs in (
        ("takes", found.inputs, expected.inputs),
        ("gives", found.outputs, expected.outputs),
    ):
        by_name = {tensor.name: tensor for tensor in mine}
        names = [tensor.name for tensor in theirs]
        surplus = len(by_name) > len(names) and (verb == "takes" or not more_outputs)
        if surplus or not set(names) <= by_name.keys():
            raise BundleError(
                f"{graph} {verb} {_list(mine)}, and the manifest says {_list(theirs)}: "
                "export the model again"
            )
        for wanted in theirs:
            tensor = by_name[wanted.name]
            if not _fits(tensor, wanted, all_sizes_known):
                raise BundleError(
                    f"{graph} {verb} {tensor}, and the manifest says {wanted}: "
                    "export the model again"
                )


def _fits(found: GraphTensor, expected: GraphTensor, all_sizes_known: bool) -> bool:
    if found.dtype != expected.dtype or len(found.shape) != len(expected.shape):
        return False
    return all(
        wanted == ANY
        or (size is None and (wanted is None or not all_sizes_known))
        or size == wanted
        for size, wanted in zip(found.shape, expected.shape, strict=True)
    )


def _list(tensors: Sequence[GraphTensor]) -> str:
    return " and ".join(map(str, tensors)) or "nothing"
