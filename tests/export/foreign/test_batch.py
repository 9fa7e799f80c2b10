"""A graph that is written for one picture answers each picture of a batch as it does alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from benchmarks import foreign_graphs
from benchmarks.foreign_graphs import Recipe
from vitcx.export.foreign.batch import make_dynamic
from vitcx.export.foreign.graph import Graph
from vitcx.runtime.errors import InputError


def windows():
    """A graph that divides windows by their norms, expanded to the size of the windows."""
    sizes = {"cut": (4, 2, 3), "size": (4, 2, 3), "joined": (1, 8, 3)}
    shapes = {
        "picture": (1, 8, 3), "windows": (4, 2, 3), "norms": (4, 2, 1), "expanded": (4, 2, 3),
        "divided": (4, 2, 3), "answers": (1, 8, 3),
    }  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["picture", "cut"], ["windows"], name="cut_windows"),
        helper.make_node("ReduceL2", ["windows"], ["norms"], axes=[2], keepdims=1),
        helper.make_node("Expand", ["norms", "size"], ["expanded"], name="expand_norms"),
        helper.make_node("Div", ["windows", "expanded"], ["divided"]),
        helper.make_node("Reshape", ["divided", "joined"], ["answers"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])
        for name in ("picture", "answers")
    ]
    weights = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in sizes.items()]
    graph = helper.make_graph(nodes, "windows", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), shapes


def test_windows_of_several_pictures_are_expanded():
    model, shapes = windows()
    pictures = np.random.default_rng(0).random((3, 8, 3), np.float32)
    alone = [ReferenceEvaluator(model).run(None, {"picture": p[None]})[0] for p in pictures]
    made = make_dynamic(model, Graph(model.graph, "picture"), "picture", shapes, 1)
    assert made == {"Reshape": 2, "Expand": 1}
    onnx.checker.check_model(model)
    together = ReferenceEvaluator(model).run(None, {"picture": pictures})[0]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_an_expand_that_repeats_pictures_is_refused_by_name():
    """Where the batch was one, nobody can tell which copy is whose."""
    nodes = [helper.make_node("Expand", ["picture", "size"], ["answers"], name="copies")]
    ends = [
        helper.make_tensor_value_info("picture", TensorProto.FLOAT, (1, 8)),
        helper.make_tensor_value_info("answers", TensorProto.FLOAT, (4, 8)),
    ]
    weights = [numpy_helper.from_array(np.array((4, 8), np.int64), "size")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights))
    shapes = {"picture": (1, 8), "answers": (4, 8)}
    with pytest.raises(InputError, match=r"'copies' \(Expand\) .* \(it repeats the pictures\)"):
        make_dynamic(model, Graph(model.graph, "picture"), "picture", shapes, 1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [Recipe("torchscript", 17, True), Recipe("dynamo", 18, True)])
def test_swin_v2_for_one_picture(recipe, taken, tmp_path):
    path = tmp_path / "swinv2.onnx"
    side = foreign_graphs.side_of("swinv2")
    foreign_graphs.write(foreign_graphs.make_model("swinv2"), path, (3, side, side), recipe)
    bundle = taken(path)
    assert "fixed batch was made dynamic" in bundle.manifest.source
    assert bundle.manifest.parity["probabilities_max_abs"] < 1e-5
