"""What a model's outputs are, and the scores that a bundle gives: softmax, sigmoid, and others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitcx.export.graph.observing import kind_of
from vitcx.export.head_rules import check_head, refuse_misfit
from vitcx.runtime.errors import InputError

# torch's names of the operations that end a model -> what they make.
_ENDINGS = {
    "SoftmaxBackward": "softmax",
    "SigmoidBackward": "sigmoid",
    # A softmax of log-probabilities is the probabilities, so these are logits like any.
    "LogSoftmaxBackward": None,
}
# Operations after the end that change no value.
_CARRIERS = ("View", "Reshape", "Squeeze", "Unsqueeze", "ToCopy", "Clone", "Alias", "Slice")
_SUM_ATOL = 1e-4


class HeadScores(nn.Module):
    """Logits (B,C) to scores (B,C'); the base of the heads' own."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


class Softmax(HeadScores):
    def forward(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=-1)


class Sigmoid(HeadScores):
    def forward(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)


class Binary(HeadScores):
    """One logit, or one probability, to two classes: not and yes."""

    def __init__(self, *, from_probability: bool) -> None:
        super().__init__()
        self.from_probability = from_probability

    def forward(self, logits: Tensor) -> Tensor:
        yes = logits if self.from_probability else torch.sigmoid(logits)
        return torch.cat([1 - yes, yes], dim=-1)


class Similarity(HeadScores):
    """Features (B,D) to their cosine similarities (B,R) to those of R reference pictures."""

    def __init__(self, references: Tensor) -> None:
        super().__init__()
        self.register_buffer("references", nn.functional.normalize(references, dim=-1))

    def forward(self, logits: Tensor) -> Tensor:
        references: Tensor = self.get_buffer("references")
        return nn.functional.normalize(logits, dim=-1) @ references.T


class Norm(HeadScores):
    """Features (B,D) to their length (B,1)."""

    def forward(self, logits: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(logits, dim=-1, keepdim=True)
        return norm


@dataclass(frozen=True)
class Head:
    """A head as the manifest has it, and the module that makes its scores of the logits.

    Attributes
    ----------
    name : one of `vitcx.runtime.manifest.HEADS`.
    target_kind : one of that head's kinds.
    scores : logits (B,C) to scores.
    default_names : of the targets, where nobody names them.
    """

    name: str
    target_kind: str
    scores: HeadScores
    default_names: tuple[str, ...]


def resolve_head(
    asked: str | None,
    model: nn.Module,
    images: Tensor,
    *,
    guess: str | None = None,
    headless: bool = False,
    references: Sequence[tuple[str, Tensor]] = (),
) -> Head:
    """Choose the head, and refuse one that cannot be right.

    Parameters
    ----------
    asked : by the user; None takes what the model's end or its configuration says, or "softmax".
    model : images to logits (B,C).
    images : (B,channels,H,W) float32, at least two, not all the same.
    guess : from the model's configuration.
    headless : the model is known to have no classifier.
    references : names and pictures (1,channels,H,W) for the head "none".

    Raises
    ------
    InputError
        With what the model gives, and which head fits it.
    """
    check_head(asked)
    logits, ending = run_to_the_end(model, images)
    count = logits.shape[1]
    if asked == "none":
        return _head_of_features(model, references)
    if headless:
        raise InputError(
            f"{kind_of(model)} has no classifier: it gives {count} features, and no classes "
            "that could be explained. Give weights with a classifier (--checkpoint), or explain "
            "its features: --head none, with --reference PICTURE for a similarity"
        )
    found = {"softmax": "softmax", "sigmoid": "binary" if count == 1 else "sigmoid"}.get(ending)
    name = asked or found or guess or "softmax"
    refuse_misfit(name, ending, count, what="model")
    if name == "softmax":
        kind, what, scores = "class", "class", HeadScores() if ending == "softmax" else Softmax()
    elif name == "binary":
        kind, what, scores = "class", "class", Binary(from_probability=ending == "sigmoid")
        count = 2
    elif name == "sigmoid":
        kind, what, scores = "label", "label", HeadScores() if ending == "sigmoid" else Sigmoid()
    else:
        kind, what, scores = "value", "value", HeadScores()
    return Head(name, kind, scores, tuple(f"{what} {index}" for index in range(count)))


def _head_of_features(model: nn.Module, references: Sequence[tuple[str, Tensor]]) -> Head:
    if not references:
        return Head("none", "norm", Norm(), ("norm of the features",))
    with torch.no_grad():
        features = torch.cat([logits_of(model(picture)).float() for _, picture in references])
    names = tuple(f"similar to {name}" for name, _ in references)
    return Head("none", "similarity", Similarity(features), names)


def logits_of(output: Any) -> Tensor:
    """The logits (B,C) in what a model gave: a tensor, or the one in an output with `logits`.

    Raises
    ------
    InputError
        If there is no one such tensor.
    """
    found = getattr(output, "logits", output)
    if isinstance(found, dict):
        found = found.get("logits", list(found.values()))
    if isinstance(found, tuple | list):
        matrices = [item for item in found if isinstance(item, Tensor) and item.ndim == 2]
        found = matrices[0] if len(matrices) == 1 else found
    if isinstance(found, Tensor) and found.ndim == 2:
        return found
    shape = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise InputError(
        f"the model gives {shape}, expected logits (B, C): wrap it in a module that returns them"
    )


def run_to_the_end(model: nn.Module, images: Tensor) -> tuple[Tensor, str]:
    """Logits (B,C) of `images`, and the activation that they come from already, or "".

    Raises
    ------
    InputError
        If the model does not run.
    """
    size = f"{images.shape[2]}x{images.shape[3]}"
    try:
        with torch.enable_grad():
            logits = logits_of(model(images.clone().requires_grad_()))
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the model does not run on two {size} pictures: {reason}") from error
    step = logits.grad_fn
    logits = logits.detach()
    while step is not None:
        name = step.name()
        for operation, ending in _ENDINGS.items():
            if name.startswith(operation):
                return logits, ending or ""
        if not name.startswith(_CARRIERS) or not step.next_functions:
            break
        step = step.next_functions[0][0]
    # A mean of two softmaxes ends in a division; its rows still sum to 1.
    sums = logits.double().sum(dim=1)
    if logits.shape[1] > 1 and bool((logits >= 0).all() and ((sums - 1).abs() < _SUM_ATOL).all()):
        return logits, "softmax"
    return logits, ""
