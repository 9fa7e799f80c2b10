"""A model, opened: what its sources have in common."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vitcx.export.preprocessing import Preprocessing


@dataclass(frozen=True)
class Source:
    """A model, in evaluation mode and float32 on the CPU, and what is known of it.

    Attributes
    ----------
    module : images to logits.
    name : of the model, for the manifest.
    origin : where its weights came from, in words.
    preprocessing : how it wants its pictures.
    channels : of its input.
    class_names : of its label set, if known.
    head : what its configuration says of its outputs, one of the bundle's heads; None if nothing.
    headless : it is known to have no classifier.
    nameless : how many outputs its public weights have, if there are no names for them; else 0.
    """

    module: nn.Module
    name: str
    origin: str
    preprocessing: Preprocessing
    channels: int
    class_names: tuple[str, ...] | None = None
    head: str | None = None
    headless: bool = False
    nameless: int = 0
