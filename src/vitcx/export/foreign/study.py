"""What is found out of an ONNX file, step by step, by reading its graph and by running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from vitcx.export.foreign.attention import find_sites
from vitcx.export.foreign.batch import make_dynamic
from vitcx.export.foreign.bundle_graph import build, foreign_operators
from vitcx.export.foreign.checking import Original
from vitcx.export.foreign.graph import Graph
from vitcx.export.foreign.head import Answers, Head, choose_output, resolve_head
from vitcx.export.foreign.normal_form import normalise
from vitcx.export.foreign.picture_input import (
    PictureInput,
    Scaling,
    choose_size,
    find_picture_input,
    measure_scaling,
)
from vitcx.export.foreign.pictures import resolve_preprocessing
from vitcx.export.foreign.places import (
    Found,
    Place,
    candidate_values,
    check_named,
    choose_place,
    named_value,
    place_of,
)
from vitcx.export.foreign.runner import AnyArray, Runner
from vitcx.export.graph.squares import Squares
from vitcx.export.preprocessing import Preprocessing
from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import LAYERS, Manifest
from vitcx.runtime.pictures.preprocess import prepare

# Batches that a dynamic graph is watched in: the axis that follows them is the batch's.
_BATCHES = (2, 3)
# As of the comparison: the same arithmetic.
_SAME = 1e-3


class Study:
    """One file, in the order of the methods below.

    Attributes
    ----------
    model : the graph, in normal form; its batch is dynamic after `find_input`.
    halved : the file is in half precision.
    made_dynamic : by kind, how many nodes were rewritten because the batch was fixed.
    """

    source: PictureInput
    size: tuple[int, int]
    scaling: Scaling | None
    preprocessing: Preprocessing
    answers: Answers
    head: Head
    found: Found
    squares: Squares

    def __init__(self, model: Any, path: Path, scratch: Path, say: Callable[[str], None]) -> None:
        self._say, self._scratch = say, scratch
        self.model, self.halved = normalise(model, path, scratch)
        self.made_dynamic: dict[str, int] = {}
        if self.halved:
            say("half precision becomes float32, with the same weights")

    def find_input(self, output: str | None, size: tuple[int, int] | None) -> None:
        """Find the input, the answers' output and the size, and make the batch dynamic."""
        self._say("looking for the pictures' input")
        self.source = find_picture_input(self.model)
        self._file = Runner(self.model, self._scratch)  # as it came, but for its form
        outputs = [o.name for o in self.model.graph.output]
        self.size = choose_size(self.source, self._file, outputs[0], size)
        batch = self.source.batch or _BATCHES[0]
        feed = self._random_feed(batch)
        try:
            shapes = self._file.shapes(feed, outputs)
            dynamic = self.source.batch is None and self._gives_rows(shapes, outputs, batch)
        except InputError:
            if self.source.batch is not None:
                raise
            dynamic = False
        if not dynamic:
            batch = self.source.batch or 1
            feed = self._random_feed(batch)
            shapes = self._file.shapes(feed, outputs)
        graph = Graph(self.model.graph, self.source.name)
        self.answers = choose_output(self.model, graph, shapes, batch, output)
        if not dynamic:
            self._make_dynamic(graph, feed, batch)
        self._graph = Graph(self.model.graph, self.source.name)
        self._runner = Runner(self.model, self._scratch)
        self.scaling = measure_scaling(self.source, self._file, self.size)

    def _gives_rows(
        self, shapes: dict[str, tuple[int, ...]], outputs: Sequence[str], batch: int
    ) -> bool:
        """Whether each picture of a batch is answered as it is alone."""
        rows = [n for n in outputs if shapes.get(n, (0,))[:1] == (batch,)]
        if not rows:
            return False
        images = self._random_images(batch)
        together = self._file.run(self.source.feed(images), rows[:1])[rows[0]]
        alone = self._file.run(self.source.feed(images[1:2]), rows[:1])[rows[0]]
        if together.dtype.kind != "f":
            return True
        scale = max(float(np.abs(alone).max()), 1e-6)
        return bool(np.abs(together[1:2] - alone).max() <= _SAME * scale)

    def _make_dynamic(self, graph: Graph, feed: dict[str, AnyArray], batch: int) -> None:
        self._say(f"making the batch dynamic: the file is written for {batch}")
        own = self.model
        values = [name for node in graph.nodes for name in node.output if name]
        shapes = self._file.shapes(feed, values)
        shapes[self.source.name] = feed[self.source.name].shape
        shapes |= {w.name: tuple(w.dims) for w in own.graph.initializer}
        self.model = type(own)()
        self.model.CopyFrom(own)
        inner = Graph(self.model.graph, self.source.name)
        self.made_dynamic = make_dynamic(self.model, inner, self.source.name, shapes, batch)

    def resolve_pictures(
        self,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        interpolation: str | None,
        crop: float | str | None,
    ) -> Preprocessing:
        """How the bundle's pictures are made."""
        if self.source.takes_bytes and self.scaling is None:
            raise InputError(
                "the graph takes bytes and does with them what is no normalisation of each channel "
                "before its first layer: export the model without that, for normalised pictures"
            )
        self._given = (mean, std)
        self.preprocessing = resolve_preprocessing(
            self.source, self.scaling, self.size, mean, std, interpolation, crop
        )
        self.squares = Squares.of(self.size, self.source.channels)
        return self.preprocessing

    def find_head(self, head: str | None, references: Sequence[Path]) -> None:
        """Find what the answers are."""
        p = cast(Manifest, self.preprocessing)
        features = []
        for path in references:
            feed = self._feed_of(prepare(path, p).pixels[None])
            features.append((path.name, self._runner.run(feed, [self.answers.value])))
        images = self._random_images(len(self.squares.images[:3]))
        values = self._runner.run(self.source.feed(images), [self.answers.value])
        self.head = resolve_head(
            head,
            self.answers,
            values[self.answers.value],
            [(name, found[self.answers.value]) for name, found in features],
        )

    def find_place(self, layer: str | None, stage: int | None, block: int) -> Found:
        """Find the embedding."""
        self._say("looking for the patch embedding")
        values = [name for node in self._graph.nodes for name in node.output if name]
        shapes = {
            batch: self._runner.shapes(self._random_feed(batch), values) for batch in _BATCHES
        }
        first, second = (shapes[batch] for batch in _BATCHES)
        sites = find_sites(self._graph, first)
        named = layer if layer is not None and layer not in LAYERS else None
        if named is not None:
            wanted = [named_value(self._graph, named, sites)]
        else:
            wanted = candidate_values(sites)
        batch_axes = {
            name: axes[0]
            for name in wanted
            if len(axes := _differing(first.get(name, ()), second.get(name, ()))) == 1
        }
        moved = self._moved([name for name in wanted if name in first])
        if named is not None:
            value = wanted[0]
            place = place_of(value, moved[value], batch_axes, self.squares)
            place = check_named(place, named, first[value], sites)
            sources = {site.source for site in sites if site.is_norm}
            word = "norm1" if value in sources else "block"
            self.found = Found(_as_layer(place, word), hierarchical=False)
        else:
            sites = [s for s in sites if s.source in moved]
            self.found = choose_place(sites, moved, batch_axes, self.squares, layer, stage, block)
        return self.found

    def _moved(self, names: Sequence[str]) -> dict[str, list[AnyArray]]:
        """What values are for each picture with a changed square, one at a time."""
        moved: dict[str, list[AnyArray]] = {name: [] for name in names}
        for image in self.squares.images if names else ():
            found = self._runner.run(self._feed_of(image[None]), names)
            for name in names:
                moved[name].append(found[name])
        return moved

    def build(self) -> Any:
        """The bundle's graph."""
        return build(
            self.model,
            self.source,
            self.size,
            self.found.place,
            self.answers,
            self.head,
            cut=self.scaling is not None,
        )

    def notes(self) -> str:
        """What was changed on the way to the bundle, for its source."""
        notes = []
        if self.halved:
            notes.append("half precision became float32")
        if self.made_dynamic:
            notes.append("its fixed batch was made dynamic")
        if self.scaling is not None and not self.scaling.does_nothing:
            notes.append("the normalisation within it was taken out")
        if own := foreign_operators(self.model):
            notes.append(f"{', '.join(own[:4])}: for ONNX Runtime alone")
        return "".join(f"; {note}" for note in notes)

    def original(self) -> Original:
        """The file's own graph, to compare with."""
        mean, std = self._input_normalisation()
        return Original(
            self._file,
            self.source,
            self.found.place,
            self.answers,
            self.head,
            self.preprocessing,
            mean.astype(np.float32),
            std.astype(np.float32),
        )

    def _feed_of(self, images: AnyArray) -> dict[str, AnyArray]:
        """Pictures, normalised for the bundle, as the graph takes them."""
        mean, std = (
            np.array(v)[:, None, None] for v in (self.preprocessing.mean, self.preprocessing.std)
        )
        own_mean, own_std = (v[:, None, None] for v in self._input_normalisation())
        return self.source.feed(((images * std + mean) - own_mean) / own_std)

    def _input_normalisation(self) -> tuple[AnyArray, AnyArray]:
        """What the file's own input is: (p - mean) / std of values p in [0, 1]."""
        mean, std = np.array(self.preprocessing.mean), np.array(self.preprocessing.std)
        if self.scaling is None:
            return mean, std
        # The graph makes factor x + offset of its input x, and the bundle's pictures are that.
        own_std = std * self.scaling.factor
        return mean + self.scaling.offset * std, own_std

    def _random_images(self, batch: int) -> AnyArray:
        rng = np.random.default_rng(batch)
        shape = (batch, self.source.channels, *self.size)
        return (
            rng.integers(0, 256, shape) if self.source.takes_bytes else rng.standard_normal(shape)
        )

    def _random_feed(self, batch: int) -> dict[str, AnyArray]:
        return self.source.feed(self._random_images(batch))


def _differing(first: tuple[int, ...], second: tuple[int, ...]) -> list[int]:
    """Axes whose size follows the batch."""
    if len(first) != len(second):
        return []
    return [axis for axis, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]


def _as_layer(place: Place, layer: str) -> Place:
    return Place(
        place.value, place.layout, place.prefix, place.grid, place.channels, place.fit, layer
    )
