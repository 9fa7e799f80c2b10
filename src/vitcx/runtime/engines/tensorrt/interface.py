"""What a network, or a built engine, takes and gives, and what is expected of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.tensorrt import version_8
from vitcx.runtime.engines.tensorrt.library import Library
from vitcx.runtime.graph_interface import GraphTensor, Interface, interface_of, interfaces_of
from vitcx.runtime.manifest import TEAMS_NAME

if TYPE_CHECKING:
    import tensorrt as trt

# TensorRT's names of element types -> NumPy's.
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def takes_teams(library: Library, bundle: Bundle) -> bool:
    """Whether a session scores the bundle's teams: TensorRT 8 has no 64-bit indices."""
    return bundle.has_teams and not version_8.is_version_8(library)


def expected_interface(library: Library, bundle: Bundle) -> Interface:
    """That of the bundle's graph, `graph_name`, in a session."""
    if not takes_teams(library, bundle):
        return interface_of(bundle.manifest)
    scores, _, teams = interfaces_of(bundle)
    if bundle.graph_name == TEAMS_NAME:
        assert teams is not None
        return teams
    return scores


def interface_of_network(network: trt.INetworkDefinition) -> Interface:
    """Of a network that was parsed from a graph."""

    def tensors(made: Iterable[trt.ITensor]) -> tuple[GraphTensor, ...]:
        return tuple(_tensor(tensor.name, tensor.dtype, tensor.shape) for tensor in made)

    return Interface(
        tensors(network.get_input(i) for i in range(network.num_inputs)),
        tensors(network.get_output(i) for i in range(network.num_outputs)),
    )


def interface_of_engine(module: Any, engine: trt.ICudaEngine) -> Interface:
    """Of a built engine; `module` is tensorrt or tensorrt_rtx."""
    found: dict[bool, list[GraphTensor]] = {True: [], False: []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
        found[is_input].append(
            _tensor(name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
        )
    return Interface(tuple(found[True]), tuple(found[False]))


def _tensor(name: str, dtype: Any, shape: Iterable[int]) -> GraphTensor:
    return GraphTensor(
        name,
        _DTYPES.get(dtype.name, dtype.name.lower()),
        tuple(None if size < 0 else int(size) for size in shape),
    )
