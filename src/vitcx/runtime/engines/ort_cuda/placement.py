"""Where ONNX Runtime put a graph's nodes: what computes is to be on the GPU, all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vitcx.runtime.errors import EngineError

# What computes shapes; ONNX Runtime puts such nodes on the CPU on purpose.
_SHAPE_OPERATORS = frozenset(
    (
        *("Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand"),
        *("Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul", "Range", "Reshape"),
        *("Shape", "Size", "Slice", "Split", "Squeeze", "Sub", "Tile", "Unsqueeze", "Where"),
    )
)


def placed_nodes(session: Any) -> list[tuple[str, str]]:
    """(provider, operator) of each node; for a version that tells."""
    parts = session.get_provider_graph_assignment_info()
    return [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]


def tells_placement(ort: Any) -> bool:
    """Whether this version tells where it puts nodes."""
    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")  # since 1.24


def check_placement(nodes: Iterable[tuple[str, str]], provider: str) -> None:
    """Raise `EngineError` if nodes that compute more than shapes are not on `provider`."""
    elsewhere: dict[str, int] = {}
    for taken, operator in nodes:
        if taken != provider and operator not in _SHAPE_OPERATORS:
            elsewhere[operator] = elsewhere.get(operator, 0) + 1
    if elsewhere:
        counts = ", ".join(f"{count} {operator}" for operator, count in sorted(elsewhere.items()))
        raise EngineError(
            f"ONNX Runtime cannot run the whole graph on {provider}, it leaves {counts} to the "
            "CPU: export the model in another precision, or with plain attention, or take another "
            "engine"
        )
