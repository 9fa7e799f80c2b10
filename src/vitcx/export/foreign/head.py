"""What a graph's outputs are: which of them has the answers, and how scores come from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vitcx.export.foreign.graph import LAYOUT, Graph
from vitcx.export.foreign.normal_form import add_constant
from vitcx.export.foreign.runner import AnyArray
from vitcx.export.head_rules import check_head, refuse_misfit
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import HEADS

FloatArray = NDArray[np.float32]

_ANSWERS = re.compile(r"(^|[^a-z])(logits|probs|probabilit\w+|scores?)$", re.IGNORECASE)
# Outputs that are called so are features, from which no class can be read.
_FEATURES = re.compile(r"pooler|embed|feature|hidden|last_hidden|token|repr", re.IGNORECASE)
# Nodes that end a model with the answers of a classifier, or carry them on.
_PRODUCTS = frozenset({"Gemm", "MatMul", "Conv", "FusedGemm", "FusedMatMul", "Einsum"})
_CARRIERS = LAYOUT | {"Add", "Div", "Mul", "Sub", "Mean", "Sum", "ReduceMean", "GlobalAveragePool"}
_ENDINGS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "product"}
_SUM_TOLERANCE = 2e-3
_LEAST_NORM = 1e-12


@dataclass(frozen=True)
class Answers:
    """The output that has the answers.

    Attributes
    ----------
    value : its name.
    shape : (B, C), also where the graph gives (B, C, 1, 1).
    ending : "softmax", "sigmoid", "product" (logits) or "" (features, or nobody knows).
    """

    value: str
    shape: tuple[int, ...]
    ending: str

    @property
    def count(self) -> int:
        return self.shape[1]


@dataclass(frozen=True)
class Head:
    """A head, and how it makes scores of a graph's answers.

    Attributes
    ----------
    name, target_kind : as the manifest has them.
    answers : how many the graph gives for a picture.
    default_names : of the targets, where nobody names them.
    given : the answers are the scores already.
    references : (R, answers), features of pictures with the length 1, for similarities.
    """

    name: str
    target_kind: str
    answers: int
    default_names: tuple[str, ...]
    given: bool
    references: FloatArray | None = None

    def scores(self, answers: AnyArray) -> FloatArray:
        """Scores of answers (B,C), in NumPy: what `add_nodes` makes of them in the graph."""
        values = answers.reshape(len(answers), -1).astype(np.float64)
        if self.name == "none":
            norms = np.linalg.norm(values, axis=1, keepdims=True)
            if self.references is not None:
                norms = values / np.maximum(norms, _LEAST_NORM) @ self.references.T
            values = norms
        if self.name == "softmax" and not self.given:
            values = np.exp(values - values.max(axis=1, keepdims=True))
            values /= values.sum(axis=1, keepdims=True)
        elif self.name in ("sigmoid", "binary") and not self.given:
            values = 1 / (1 + np.exp(-values))
        if self.name == "binary":
            values = np.concatenate([1 - values, values], axis=1)
        scores: FloatArray = values.astype(np.float32)
        return scores

    def add_nodes(self, graph: Any, answers: str, output: str) -> None:
        """Add what makes `output` of the value `answers` (B,C) float32 to an onnx.GraphProto.

        Of operators that are the same in every opset from 11 on.
        """

        def add(op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
            name = name or f"vitcx.scores.{len(graph.node)}"
            graph.node.append(helper.make_node(op, inputs, [name], name=name, **attributes))
            return name

        value = answers
        if self.name == "none":
            ones = np.ones((self.answers, 1), np.float32)
            square = add("Mul", value, value)
            weights = add_constant(graph, "vitcx.ones", ones)
            norm = add("Sqrt", add("MatMul", square, weights))
            if self.references is None:
                add("Identity", norm, name=output)
                return
            least = add_constant(graph, "vitcx.least", np.array([_LEAST_NORM], np.float32))
            references = add_constant(graph, "vitcx.references", self.references.T.copy())
            unit = add("Div", value, add("Max", norm, least))
            add("MatMul", unit, references, name=output)
            return
        if not self.given and self.name in ("softmax", "sigmoid", "binary"):
            if self.name == "softmax":
                value = add("Softmax", value, axis=1)
            else:
                value = add("Sigmoid", value)
        if self.name == "binary":
            one = add_constant(graph, "vitcx.one", np.array([1], np.float32))
            add("Concat", add("Sub", one, value), value, name=output, axis=1)
        else:
            add("Identity", value, name=output)


def choose_output(
    model: Any,
    graph: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    batch: int,
    asked: str | None,
) -> Answers:
    """The output that has the answers.

    Parameters
    ----------
    model, graph, shapes : the model, its index, and the shapes of its outputs at `batch`.
    asked : its name, where the user gives one.

    Raises
    ------
    InputError
        If there are several that may be it, or none.
    """
    outputs = [o for o in model.graph.output if o.name in shapes]
    fitting = [
        o.name
        for o in outputs
        if o.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
        and _is_answer(shapes[o.name], batch)
        and o.name in graph.data
    ]
    shown = ", ".join(f"'{o.name[:60]}' {shapes[o.name]}" for o in outputs[:6]) or "nothing"
    if asked is not None:
        if asked not in fitting:
            raise InputError(f"no output '{asked}' of one row a picture: the graph gives {shown}")
        name = asked
    else:
        by_name = [n for n in fitting if _ANSWERS.search(n)]
        exact = [n for n in by_name if n.lower() in ("logits", "probabilities", "probs")]
        plain = [n for n in fitting if not _FEATURES.search(n)] or fitting
        for group in (exact, by_name, plain):
            if len(group) == 1:
                break
        else:
            raise InputError(
                f"the graph gives {shown}: "
                + ("say which has the answers, with --output" if fitting else "expected (B,C)")
            )
        name = group[0]
    return Answers(name, (batch, int(np.prod(shapes[name][1:]))), _ending(graph, name))


def resolve_head(
    asked: str | None,
    answers: Answers,
    values: AnyArray,
    references: Sequence[tuple[str, AnyArray]] = (),
) -> Head:
    """Choose the head, and refuse one that cannot be right.

    Parameters
    ----------
    asked : by the user; None: what the graph's end says.
    answers : the output.
    values : (B,C), its values for at least two pictures.
    references : names and features (1,C) of reference pictures, for the head "none".

    Raises
    ------
    InputError
        With what the graph gives, and which head fits it.
    """
    check_head(asked)
    count, ending = answers.count, answers.ending
    rows = values.reshape(len(values), -1).astype(np.float64)
    sums = np.abs(rows.sum(axis=1) - 1)
    if ending != "sigmoid" and count > 1 and (rows >= 0).all() and (sums < _SUM_TOLERANCE).all():
        ending = "softmax"
    if asked == "none":
        return _head_of_features(count, references)
    if asked is None and (ending == "" or _FEATURES.search(answers.value)):
        raise InputError(
            f"the output '{answers.value}' ({count} numbers a picture) does not come from a "
            "classifier: they may be features. Say what they are: --head softmax for classes, none "
            "for features, or take another output with --output"
        )
    name = asked or {"softmax": "softmax", "sigmoid": "sigmoid"}.get(ending, "softmax")
    if asked is None and ending == "sigmoid" and count == 1:
        name = "binary"
    refuse_misfit(name, ending, count, what="graph")
    given = ending == ("softmax" if name == "softmax" else "sigmoid") or name == "regression"
    kind = HEADS[name][0]
    targets = 2 if name == "binary" else count
    return Head(name, kind, count, tuple(f"{kind} {i}" for i in range(targets)), given)


def _head_of_features(count: int, references: Sequence[tuple[str, AnyArray]]) -> Head:
    if not references:
        return Head("none", "norm", count, ("norm of the features",), given=True)
    rows = np.concatenate([r.reshape(1, -1) for _, r in references]).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _LEAST_NORM)
    names = tuple(f"similar to {name}" for name, _ in references)
    return Head("none", "similarity", count, names, True, rows.astype(np.float32))


def _is_answer(shape: tuple[int, ...], batch: int) -> bool:
    """(B,C), or (B,C) with axes of one."""
    return len(shape) >= 2 and shape[0] == batch and all(size == 1 for size in shape[2:])


def _ending(graph: Graph, value: str) -> str:
    """The operation that the output comes from."""
    for _ in range(30):
        node = graph.node_of(value)
        if node is None:
            return ""
        if node.op_type in _ENDINGS:
            return _ENDINGS[node.op_type]
        if node.op_type in _PRODUCTS and graph.is_weighted_product(node):
            return "product"
        if node.op_type not in _CARRIERS:
            return ""
        before = graph.data_inputs(node)
        # A mean of two heads has two: both are alike.
        if not before or graph.residual(node) is not None:
            return ""
        value = before[0]
    return ""
