"""What a graph takes: the picture's input, its axes and size, and a normalisation within the graph.

Graphs that were made for programs without a library of pictures take bytes and normalise them
themselves. Masks and noise belong behind that: in units of the normalised picture, as the method
has them. So the steps of the graph before its first layer are measured, and cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from vitcx.export.foreign.graph import Graph
from vitcx.export.foreign.runner import AnyArray, Runner
from vitcx.runtime.errors import InputError

# Steps that scale values or lay them out.
_SCALING = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Sub", "Transpose"})
# Others that may come before the first layer, and leave the channels where they are.
_PASSING = frozenset({"Clip", "DequantizeLinear", "Pad", "QuantizeLinear", "Resize"})
_FIRST_LAYERS = frozenset({"Conv", "ConvInteger", "FusedConv", "QLinearConv"})
_DTYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
}
_MOST_CHANNELS = 16
_LARGEST_SIDE = 1024
_LINEAR_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PictureInput:
    """The input that takes pictures.

    Attributes
    ----------
    name : of the input.
    dtype : of its values.
    batch : its fixed batch; None where it is dynamic.
    channels, size : of a picture; the size (H, W) is None where the graph takes several.
    channels_last : its axes are (B,H,W,channels).
    patch : rows of pixels from one patch to the next, where the first layer tells; else 1.
    scaled : the value behind the steps that scale, before the first layer; the input itself where
        there are none.
    order : axes of `scaled`, each as an axis of (B,channels,H,W).
    """

    name: str
    dtype: Any
    batch: int | None
    channels: int
    size: tuple[int, int] | None
    channels_last: bool
    patch: int
    scaled: str
    order: tuple[int, ...]

    @property
    def takes_bytes(self) -> bool:
        """Whether its values are whole numbers from 0 to 255."""
        return np.dtype(self.dtype).kind in "iu"

    def feed(self, images: NDArray[Any]) -> dict[str, AnyArray]:
        """Images (B,channels,H,W), in the input's own units, as the graph takes them."""
        own = images.transpose(0, 2, 3, 1) if self.channels_last else images
        if self.takes_bytes:
            own = np.rint(own).clip(0, 255)
        return {self.name: np.ascontiguousarray(own, dtype=self.dtype)}


@dataclass(frozen=True)
class Scaling:
    """What the graph itself makes of a picture x: `factor` x + `offset`, one each for a channel."""

    factor: NDArray[np.float64]
    offset: NDArray[np.float64]

    @property
    def does_nothing(self) -> bool:
        return bool(np.allclose(self.factor, 1) and np.allclose(self.offset, 0))


def find_picture_input(model: Any) -> PictureInput:
    """The one input that a graph has, if it takes pictures.

    Raises
    ------
    InputError
        With what it takes instead.
    """
    inputs = list(model.graph.input)
    shown = ", ".join(f"'{value.name[:60]}' {_shown(value)}" for value in inputs[:5]) or "nothing"
    if len(inputs) != 1 or len(_dims(inputs[0])) != 4:
        raise InputError(
            f"the graph takes {shown}; expected one input, of pictures (B,3,H,W) or (B,H,W,3)"
        )
    value = inputs[0]
    kind = value.type.tensor_type.elem_type
    if kind not in _DTYPES:
        raise InputError(f"the graph takes {shown}: expected float or uint8 pictures")
    dims = _dims(value)
    graph = Graph(model.graph, value.name)
    scaled, order, first = _walk(graph, value.name)
    channel_axis: int | None = None
    channels, patch = 0, 1
    if first is not None:
        layer, axes = first
        channel_axis = axes[1]
        channels, patch = _of_layer(layer, model.graph)
    if channel_axis is None:
        # No convolution tells: the axis that has the size of colours.
        small = [axis for axis in (1, 3) if 0 < (dims[axis] or 0) <= _MOST_CHANNELS]
        if len(small) != 1:
            raise InputError(
                f"the graph takes {shown}, and nothing in it says which axis is that of the "
                "colours: export it with a fixed number of channels"
            )
        channel_axis = small[0]
    channels = dims[channel_axis] or channels
    if channel_axis not in (1, 3) or not 1 <= (channels or 0) <= _MOST_CHANNELS:
        raise InputError(f"the graph takes {shown}; expected pictures (B,3,H,W) or (B,H,W,3)")
    last = channel_axis == 3
    height, width = (dims[1], dims[2]) if last else (dims[2], dims[3])
    return PictureInput(
        name=value.name,
        dtype=_DTYPES[kind],
        batch=dims[0],
        channels=int(channels or 0),
        size=None if height is None or width is None else (height, width),
        channels_last=last,
        patch=patch,
        scaled=scaled,
        order=tuple((0, 2, 3, 1)[axis] if last else axis for axis in order),
    )


def choose_size(
    source: PictureInput, runner: Runner, output: str, asked: tuple[int, int] | None
) -> tuple[int, int]:
    """(H, W) of the pictures: the graph's own, or the only square that it takes.

    Raises
    ------
    InputError
        If the graph does not run at the size, or takes several and none was asked for.
    """
    if source.size is not None:
        if asked not in (None, source.size):
            raise InputError(
                f"the graph takes pictures of {source.size[0]}x{source.size[1]} alone: leave out "
                "--img-size"
            )
        return source.size
    if asked is not None:
        if not _runs(source, runner, output, asked):
            raise InputError(f"the graph does not run on pictures of {asked[0]}x{asked[1]}")
        return asked
    found: list[int] = []
    step = source.patch if source.patch > 1 else 16
    for side in range(2 * step, _LARGEST_SIDE + 1, step):
        if _runs(source, runner, output, (side, side)):
            found.append(side)
        if len(found) == 2:
            break
    if len(found) != 1:
        what = "of several sizes" if found else "of no square size that was tried"
        raise InputError(f"the graph takes pictures {what}: say which, with --img-size")
    return found[0], found[0]


def measure_scaling(source: PictureInput, runner: Runner, size: tuple[int, int]) -> Scaling | None:
    """What the graph's own steps before its first layer do; None if they are no scaling of each
    channel by itself.
    """
    count, unit = source.channels, 255.0 if source.takes_bytes else 1.0
    if source.scaled == source.name:
        if source.takes_bytes:
            return None
        return Scaling(np.ones(count), np.zeros(count))
    batch = source.batch or 1

    def after(picture: NDArray[Any]) -> NDArray[np.float64]:
        images = np.broadcast_to(picture, (batch, count, *size))
        value = runner.run(source.feed(images), [source.scaled])[source.scaled][:1]
        back = np.argsort(source.order)
        first: NDArray[np.float64] = value.transpose([int(axis) for axis in back])[0].astype(float)
        return first

    offset = after(np.zeros((count, 1, 1)))[:, 0, 0]
    factors = np.stack([after(row)[:, 0, 0] for row in unit * np.eye(count)[:, :, None, None]])
    matrix = (factors - offset) / unit
    rng = np.random.default_rng(0)
    picture = np.rint(255 * rng.random((count, *size))) / (255 / unit)
    found = after(picture)
    factor = np.diagonal(matrix).copy()
    expected = factor[:, None, None] * picture + offset[:, None, None]
    scale = max(float(np.abs(expected).max()), 1e-12)
    if np.abs(found - expected).max() > _LINEAR_TOLERANCE * scale or not factor.all():
        return None
    return Scaling(factor, offset)


def _runs(source: PictureInput, runner: Runner, output: str, size: tuple[int, int]) -> bool:
    images = np.zeros((source.batch or 1, source.channels, *size))
    try:
        runner.run(source.feed(images), [output])
    except InputError:
        return False
    return True


def _walk(
    graph: Graph, name: str
) -> tuple[str, tuple[int, ...], tuple[Any, tuple[int, ...]] | None]:
    """From the input to the first layer: the value behind all scaling with its axes as the input's,
    and the layer with those of what it takes.
    """
    value = name
    axes: tuple[int, ...] = (0, 1, 2, 3)
    scaled, order = value, axes
    only_scaling = True
    for node in _path(graph, value):
        if node.op_type in _FIRST_LAYERS:
            return scaled, order, (node, axes)
        if node.op_type == "Transpose":
            perm = next((a.ints for a in node.attribute if a.name == "perm"), (3, 2, 1, 0))
            axes = tuple(axes[axis] for axis in perm)
        only_scaling = only_scaling and node.op_type in _SCALING
        if only_scaling:
            scaled, order = node.output[0], axes
    return scaled, order, None


def _path(graph: Graph, value: str) -> Iterator[Any]:
    """The nodes after a value, as long as each has one that takes its values, and up to a layer."""
    while True:
        takers = [
            graph.nodes[index]
            for index in graph.takers[value]
            if not graph.data.isdisjoint(graph.nodes[index].output)
        ]
        if len(takers) != 1 or len(graph.data_inputs(takers[0])) != 1:
            return
        node = takers[0]
        if node.op_type not in _SCALING | _PASSING | _FIRST_LAYERS:
            return
        yield node
        if node.op_type in _FIRST_LAYERS:
            return
        value = node.output[0]


def _of_layer(layer: Any, graph: Any) -> tuple[int, int]:
    """Channels of what a convolution takes, and its stride; 0 and 1 where it does not say."""
    weights = {weight.name: weight for weight in graph.initializer}
    names = [name for name in layer.input if name in weights and len(weights[name].dims) == 4]
    group = next((a.i for a in layer.attribute if a.name == "group"), 1)
    channels = int(weights[names[0]].dims[1]) * group if names else 0
    stride = next((a.ints[0] for a in layer.attribute if a.name == "strides" and a.ints), 1)
    return channels, int(stride)


def _dims(value: Any) -> list[int | None]:
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in value.type.tensor_type.shape.dim
    ]


def _shown(value: Any) -> str:
    kind = value.type.tensor_type.elem_type
    name = TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else "?"
    sizes = ", ".join("any" if size is None else str(size) for size in _dims(value))
    return f"{name} ({sizes})"
