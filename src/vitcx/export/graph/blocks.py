"""The list of blocks that a layer is in: how a model calls them, and what it makes of what they
give."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitcx.export.graph.heads import logits_of
from vitcx.export.graph.observing import observe


@dataclass(frozen=True)
class BlockCall:
    """What a block was given beside its tokens.

    Attributes
    ----------
    rest : after the tokens, by place.
    keywords : by name.
    """

    rest: tuple[Any, ...]
    keywords: dict[str, Any]


@dataclass(frozen=True)
class Watched:
    """One pass of a model, as its blocks had it.

    Attributes
    ----------
    tokens : what the first block was given.
    calls : of each block.
    in_tuple : the last block gives its tokens as the first of several things.
    logits : (B,C) float32 of the model.
    """

    tokens: Tensor
    calls: tuple[BlockCall, ...]
    in_tuple: bool
    logits: Tensor


def lists_around(model: nn.Module, path: str) -> list[tuple[str, list[nn.Module]]]:
    """The lists of submodules that hold the one at `path`, the outermost first.

    Returns
    -------
    the path of each list's first element, and its elements.
    """
    found = []
    module, above = model, ""
    for part in path.split("."):
        if isinstance(module, nn.Sequential | nn.ModuleList):
            names, elements = zip(*module.named_children(), strict=True)
            found.append((f"{above}{names[0]}", list(elements)))
        module, above = module.get_submodule(part), f"{above}{part}."
    return found


def attends_before(model: nn.Module, path: str, images: Tensor) -> bool:
    """Whether an attention is computed before the submodule at `path` is called."""
    calls, _ = observe(model, images)
    began = min(call.began for call in calls if call.path == path)
    return any(call.attends and call.ended < began for call in calls)


def watch(model: nn.Module, blocks: Sequence[nn.Module], images: Tensor) -> Watched | None:
    """Run the model, and note how it calls `blocks`; None if not once each, on tokens first."""
    order: list[nn.Module] = []
    given: list[tuple[Any, ...]] = []
    keywords: list[dict[str, Any]] = []
    gave: list[Any] = []

    def before(block: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        order.append(block)
        given.append(arguments)
        keywords.append(dict(named))

    hooks = [b.register_forward_pre_hook(before, with_kwargs=True) for b in blocks]
    hooks.append(blocks[-1].register_forward_hook(lambda block, taken, out: gave.append(out)))
    try:
        logits = logits_of(model(images))
    finally:
        for hook in hooks:
            hook.remove()
    in_order = len(order) == len(blocks) and all(
        one is two for one, two in zip(order, blocks, strict=True)
    )
    if not in_order or not all(given) or not isinstance(given[0][0], Tensor):
        return None
    calls = tuple(
        BlockCall(arguments[1:], named) for arguments, named in zip(given, keywords, strict=True)
    )
    return Watched(given[0][0], calls, isinstance(gave[0], tuple), logits.float())


def run_block(block: nn.Module, tokens: Tensor, call: BlockCall) -> Tensor:
    """The tokens that a block makes of `tokens`."""
    made: Any = block(tokens, *call.rest, **call.keywords)
    given: Tensor = made[0] if isinstance(made, tuple) else made
    return given


@contextlib.contextmanager
def ending_with(blocks: Sequence[nn.Module], features: Tensor, *, in_tuple: bool) -> Iterator[None]:
    """Within, the model goes on with `features` instead of what its last block would give."""

    def pass_on(tokens: Any, *rest: Any, **named: Any) -> Any:
        return tokens

    def give(tokens: Any, *rest: Any, **named: Any) -> Any:
        return (features,) if in_tuple else features

    kept = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = pass_on
        blocks[-1].forward = give
        yield
    finally:
        for block, forward in zip(blocks, kept, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
