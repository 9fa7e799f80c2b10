"""Watches one forward pass: what each submodule gave, when, and how a changed patch moved it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitcx.runtime.errors import InputError

Array = NDArray[np.float64]

# Some attentions have no product of two activations (SwiftFormer's); their classes say so.
_ATTENTION_CLASS = re.compile(r"attention(?!.*pool)", re.IGNORECASE)

# In which class tokens alone look at the patches: the patches do not change there.
_CLASS_ATTENTION = re.compile(r"class_?(attn|attention|block)|attn_?class", re.IGNORECASE)

_NORM_CLASS = re.compile(r"(?!Conv)\w*?(Norm|LN)(\d[dD])?(?!Act)\w{0,6}(?<!Act)")


@dataclass
class Call:
    """One call of a submodule.

    Attributes
    ----------
    path : of the submodule.
    began, ended : place in the order of all that happened.
    shape : of what it gave; of the first tensor if it gave several.
    attends : an attention was computed within it.
    is_norm : its class is a normalisation.
    changes : by layout, (PROBES, ...) norms of the changes: "BND" (PROBES, N); "BHWD" and
        "BDHW" (PROBES, h, w).
    """

    path: str
    began: int
    ended: int = 0
    shape: tuple[int, ...] = ()
    attends: bool = False
    is_norm: bool = False
    changes: dict[str, Array] = field(default_factory=dict)


def observe(model: nn.Module, images: Tensor) -> tuple[list[Call], Any]:
    """Run a model once on the images of a `Probe`.

    Returns
    -------
    the calls of every submodule, in order of their ends, and what the model gave.
    """
    watch = _Watch(len(images))
    with watch.on(model), torch.no_grad(), watch:
        outputs = model(images)
    return watch.done, outputs


def check_attention(model: nn.Module, size: tuple[int, int], channels: int = 3) -> None:
    """Raise `InputError` if no attention is seen in one pass over a picture of `size` (H, W)."""
    calls, _ = observe(model, torch.zeros(2, channels, *size))
    if not any(call.attends for call in calls):
        refuse_without_attention(model)


def kind_of(model: nn.Module) -> str:
    """The name of the model's class, or of the one that it wraps alone."""
    parts = list(model.children())
    return type(parts[0] if len(parts) == 1 else model).__name__


def refuse_without_attention(model: nn.Module) -> NoReturn:
    raise InputError(
        f"no attention was seen in {kind_of(model)}: ViT-CX explains Vision Transformers, "
        "and this is a convolutional or another network"
    )


class _Watch(TorchFunctionMode):
    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.clock = 0
        self.of_classes = 0
        self.running: list[Call] = []
        self.done: list[Call] = []

    @contextlib.contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        hooks = []
        try:
            for path, module in model.named_modules():
                if path:
                    hooks.append(module.register_forward_pre_hook(self._begin(path)))
                    hooks.append(module.register_forward_hook(self._end))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _tick(self) -> int:
        self.clock += 1
        return self.clock

    def _begin(self, path: str) -> Any:
        def begin(module: nn.Module, inputs: Any) -> None:
            kind = type(module).__name__
            self.running.append(Call(path, self._tick(), is_norm=bool(_NORM_CLASS.fullmatch(kind))))
            if _CLASS_ATTENTION.search(kind):
                self.of_classes += 1
            elif _ATTENTION_CLASS.search(kind):
                self._attention()

        return begin

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        call = self.running.pop()
        call.ended = self._tick()
        if _CLASS_ATTENTION.search(type(module).__name__):
            self.of_classes -= 1
        if isinstance(output, tuple | list) and output:
            output = output[0]
        if isinstance(output, Tensor) and output.is_floating_point():
            call.shape = tuple(output.shape)
            call.changes = _changes(output, self.batch)
        self.done.append(call)

    def _attention(self) -> None:
        if self.of_classes:
            return
        for call in self.running:
            call.attends = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
            self._attention()
        elif name in ("matmul", "__matmul__", "bmm"):
            both = [a for a in args[:2] if isinstance(a, Tensor) and a.ndim >= 3]
            if len(both) == 2 and not any(isinstance(a, nn.Parameter) for a in both):
                self._attention()
        return func(*args, **(kwargs or {}))


def _changes(output: Tensor, batch: int) -> dict[str, Array]:
    if output.ndim not in (3, 4) or output.shape[0] != batch:
        return {}
    change = (output[1:] - output[:1]).double()
    if output.ndim == 3:
        norms = {"BND": change.norm(dim=2)}
    else:
        norms = {"BHWD": change.norm(dim=3), "BDHW": change.norm(dim=1)}
    return {layout: norm.numpy() for layout, norm in norms.items()}
