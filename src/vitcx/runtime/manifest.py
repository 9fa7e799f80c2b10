"""The manifest: what a bundle says of itself, with the rules that its entries keep."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitcx.runtime.errors import BundleError, InputError
from vitcx.runtime.json_objects import read_json
from vitcx.runtime.manifest_values import shown, shown_names, typed

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
ENCODER_NAME = "encoder.onnx"
CHECK_NAME = "check.npz"
TEAMS_NAME = "teams.onnx"
# What graphs keep in common, where there are several.
WEIGHTS_NAME = "weights.data"
# The graph's tensors: what it takes, and what it gives.
INPUT, PROBABILITIES, EMBEDDING = "images", "probabilities", "embedding"
# Those of the graph that scores teams; what encodes gives the tokens.
TOKENS, PICTURES, PATCHES = "tokens", "pictures", "patches"

LAYERS = ("norm1", "attn", "block")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
# What encodes pictures in a reduced precision: the float32 graph, or the reduced one itself.
ENCODERS = ("fp32", "same")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash")
# What the model's head makes of its logits -> the kinds of targets that it has. ``none`` is a model
# without a classifier: its features are compared, or measured.
HEADS = {
    "softmax": ("class",),
    "sigmoid": ("label",),
    "binary": ("class",),
    "regression": ("value",),
    "none": ("similarity", "norm"),
}
# Kind of target -> what its score is. An impact is what the patches of a mask keep of it.
TARGET_KINDS = {
    "class": "the probability of the class, of all classes together 1",
    "label": "the probability of the label, whatever the other labels have",
    "value": "the value that the model gives, in its own unit",
    "similarity": "the cosine similarity of the picture's features to a reference picture's",
    "norm": "the length (Euclidean norm) of the picture's features",
}
# Bounds on what a manifest may ask for, far beyond the models that there are: a side of the input
# in pixels, the numbers in an input or an embedding, the least crop, and mean and std.
MAX_SIDE, MAX_VALUES, LEAST_CROP, MAX_SCALE = 1 << 14, 1 << 28, 0.05, 1e6
# Those whose scores are no probabilities.
SCORE_KINDS = ("value", "similarity", "norm")


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself. Sizes are in pixels, (height, width); grids in patches.

    Attributes
    ----------
    schema_version : `SCHEMA_VERSION` of the writer.
    model_name, source : the model, and where its weights came from.
    layer, layer_path : which embedding (`LAYERS`), and its module path in the exported model.
    input_size : (H, W) of the model's input.
    mean, std : normalisation of values in [0, 1], one for each channel of the input. Three channels
        are red, green and blue, one is grey; of another number the runtime takes arrays alone.
    crop_fraction : in [`LEAST_CROP`, 1]; the resized picture's share that the crop keeps.
    crop_mode : ``center`` resizes the short side and crops, ``squash`` resizes to the input size.
    interpolation : the resize filter, one of `INTERPOLATIONS`.
    grid, channels : (h, w) and D of the embedding.
    class_names : C names, unique or not; index is the class.
    distance_threshold : default δ of the clustering, in [0, 1].
    opset, precision : of the graph that scores.
    files : SHA-256 by file name, of every file but the manifest.
    parity : figures measured against the framework at export.
    precision_figures : of a reduced precision, measured against fp32 at export (see
        `vitcx.runtime.precision_limits`); empty in fp32.
    head : one of `HEADS`, how scores come from the model's logits.
    target_kind : one of `TARGET_KINDS`, what a target is.
    token_grid : (h, w) of the tokens that `TEAMS_NAME` takes; None where there is no such graph.
    check_tolerances : by precision, how far an engine's answers to the bundle's check may be from
        the record (see `vitcx.runtime.check_record`), where that is not as usual.
    versions : of what made it.
    """

    model_name: str
    source: str
    layer: str
    layer_path: str
    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float
    crop_mode: str
    interpolation: str
    grid: tuple[int, int]
    channels: int
    class_names: tuple[str, ...]
    distance_threshold: float
    opset: int
    precision: str
    files: Mapping[str, str]
    parity: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    precision_figures: Mapping[str, float] = field(default_factory=dict)
    head: str = "softmax"
    target_kind: str = "class"
    token_grid: tuple[int, int] | None = None
    check_tolerances: Mapping[str, float] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise BundleError(f"the manifest does not fit: {'; '.join(problems)}")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def input_channels(self) -> int:
        """Channels of the graph's input."""
        return len(self.mean)

    @property
    def scores_are_probabilities(self) -> bool:
        """Whether the output `probabilities` holds such."""
        return self.target_kind not in SCORE_KINDS

    @property
    def score_word(self) -> str:
        """What to call the output in words: ``probability`` or ``score``."""
        return "probability" if self.scores_are_probabilities else "score"

    @property
    def model_sha256(self) -> str:
        """What tells the model from another: the digest of its file, or of those of all its files.

        Weights may lie beside the graph, and the encoder is a graph of its own. The check's record
        is no part of the model.
        """
        files = {name: digest for name, digest in self.files.items() if name != CHECK_NAME}
        if len(files) == 1:
            return files[MODEL_NAME]
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def encoder(self) -> Manifest:
        """What it says of the graph that encodes: float32 where that is one of its own."""
        if ENCODER_NAME not in self.files:
            return self
        return dataclasses.replace(self, precision="fp32", precision_figures={})

    def to_json(self) -> str:
        """The manifest as JSON text, two-space indented, in the order of the attributes."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest; `BundleError` names what is missing, unknown or of the wrong type."""
        try:
            values = read_json(text)
        except InputError as error:
            raise BundleError(f"the manifest {error}") from None
        except RecursionError:
            raise BundleError("the manifest is not JSON that fits: too many brackets") from None
        except ValueError as error:  # of JSON's grammar, or a number of thousands of digits
            raise BundleError(f"the manifest is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise BundleError(f"the manifest is a JSON {type(values).__name__}, not an object")
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"the bundle has schema version {shown(version)} and this vitcx reads "
                f"{SCHEMA_VERSION}: export the model again, or install the vitcx that made it"
            )
        fields = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - fields.keys()):
            raise BundleError(f"the manifest has unknown entries: {shown_names(unknown)}")
        required = {
            name
            for name, f in fields.items()
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if missing := sorted(required - values.keys()):
            raise BundleError(f"the manifest lacks: {', '.join(missing)}")
        hints = typing.get_type_hints(cls)
        return cls(**{k: typed(k, value, hints[k]) for k, value in values.items()})


def _problems(m: Manifest) -> typing.Iterator[str]:
    for name, value, allowed in (
        ("layer", m.layer, LAYERS),
        ("precision", m.precision, PRECISIONS),
        ("interpolation", m.interpolation, INTERPOLATIONS),
        ("crop_mode", m.crop_mode, CROP_MODES),
    ):
        if value not in allowed:
            yield f"{name} is {value!r}, not one of {', '.join(allowed)}"
    if m.head not in HEADS:
        yield f"head is {m.head!r}, not one of {', '.join(HEADS)}"
    elif m.target_kind not in HEADS[m.head]:
        yield (
            f"target_kind is {m.target_kind!r}, and the head {m.head} has "
            f"{' or '.join(HEADS[m.head])}"
        )
    if not m.mean or len(m.mean) != len(m.std):
        yield f"mean {shown(m.mean)} and std {shown(m.std)} are not one each for a channel"
    height, width = m.input_size
    if min(m.input_size) < 1 or min(m.grid) < 1 or m.channels < 1:
        yield (
            f"input {shown(m.input_size)}, grid {shown(m.grid)} and {shown(m.channels)} channels "
            "must be positive"
        )
    elif (
        max(m.input_size) > MAX_SIDE
        or max(m.input_channels * height * width, m.channels * math.prod(m.grid)) > MAX_VALUES
    ):
        yield (
            f"input {shown(m.input_size)}, grid {shown(m.grid)} and {shown(m.channels)} channels "
            "are larger than any model's"
        )
    elif m.grid[0] > height or m.grid[1] > width:
        yield f"the patch grid {m.grid} is finer than the input {m.input_size}"
    if not m.class_names:
        yield "class_names is empty"
    if not LEAST_CROP <= m.crop_fraction <= 1:
        yield f"crop_fraction is {m.crop_fraction}, not in [{LEAST_CROP}, 1]"
    if not 0 <= m.distance_threshold <= 1:
        yield f"distance_threshold is {m.distance_threshold}, not in [0, 1]"
    if not all(abs(value) <= MAX_SCALE for value in m.mean):
        yield f"mean is {shown(m.mean)}, not all between -{MAX_SCALE:g} and {MAX_SCALE:g}"
    if not all(1 / MAX_SCALE <= value <= MAX_SCALE for value in m.std):
        yield f"std is {shown(m.std)}, not all between {1 / MAX_SCALE:g} and {MAX_SCALE:g}"
    if MODEL_NAME not in m.files:
        yield f"files does not list {MODEL_NAME}"
    if (m.token_grid is not None) != (TEAMS_NAME in m.files):
        yield f"token_grid is {m.token_grid} and files does " + (
            f"list {TEAMS_NAME}" if TEAMS_NAME in m.files else f"not list {TEAMS_NAME}"
        )
    elif m.token_grid is not None and min(m.token_grid) < 1:
        yield f"token_grid is {m.token_grid}, not positive"
    for name in m.files:
        if Path(name).name != name or name in ("", ".", "..", MANIFEST_NAME):
            yield f"files lists {name!r}, which is not a plain file name"
