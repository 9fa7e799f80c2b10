"""Where a model's patch embedding is, and how it becomes (B,D,h,w)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitcx.export.graph.arrangement import Map, Tokens, Windows
from vitcx.export.graph.finder import find_place
from vitcx.export.graph.heads import HeadScores, Softmax, logits_of
from vitcx.export.graph.layout import Probe, check_layout
from vitcx.export.graph.resolutions import (
    FLAT_THRESHOLD,
    HIERARCHICAL_THRESHOLD,
    default_threshold,
)
from vitcx.export.preprocessing import input_channels, input_size_of
from vitcx.export.spec import ModelSpec
from vitcx.runtime.errors import InputError


@dataclass(frozen=True)
class Site:
    """A submodule whose output is the embedding.

    Attributes
    ----------
    path : of the submodule in the model.
    arrange : makes its output (B,D,h,w); a shape that does not fit raises `InputError`.
    distance_threshold : default δ for this family.
    layer : what it is of its block, one of `vitcx.runtime.manifest.LAYERS`.
    """

    path: str
    arrange: Callable[[Tensor], Tensor]
    distance_threshold: float
    layer: str


def find_site(
    model: nn.Module,
    layer: str | None = None,
    stage: int | None = None,
    block: int = -1,
    *,
    probe: Probe | None = None,
) -> Site:
    """Find the embedding of a model.

    Models built as timm's ViT and Swin are known; others are watched running (`finder`).

    Parameters
    ----------
    model : in evaluation mode, its input size final.
    layer : "norm1" (the normalisation before the block's attention), "attn" (its attention's
        output) or "block"; None is norm1, or block where the block has no such.
    stage : index of the stage, from the end if negative; None is the second-to-last of a Swin, and
        the one nearest to patches of 16 pixels of others.
    block : index of the block, in the stage or the model.
    probe : of the model's input size and channels; None takes those of timm's configuration.

    Raises
    ------
    InputError
        If the model has no transformer blocks, or its grid cannot be found.
    """
    if probe is None:
        probe = Probe.of(input_size_of(model), input_channels(model))
    site = _known_site(model, layer or "norm1", stage, block)
    # Every token of an attention's output sees all patches: that its block lies right has to do.
    proof = _known_site(model, "block", stage, block) if layer == "attn" else site
    if site is not None and proof is not None and _is_right(model, proof, probe):
        return site
    found = find_place(model, probe, layer, stage, block)
    place = found.place
    arrange: Callable[[Tensor], Tensor] = Map(channels_last=place.layout == "BHWD")
    if place.layout == "BND":
        arrange = Tokens(place.prefix, place.grid)
    threshold = default_threshold(hierarchical=found.hierarchical)
    return Site(place.path, arrange, threshold, found.layer)


def _is_right(model: nn.Module, site: Site, probe: Probe) -> bool:
    """Whether the layer lies in the picture, and a norm1 is the input of its block's attention.

    SwinV2 and other post-norm models have their norm1 after it.
    """
    block, _, name = site.path.rpartition(".")
    parts = dict(model.get_submodule(block).named_children()) if name == "norm1" else {}
    order: list[str] = []
    hooks = [
        parts[part].register_forward_pre_hook(lambda m, i, part=part: order.append(part))
        for part in ("norm1", "attn")
        if part in parts
    ]
    wrapped = WithEmbedding(model, site)
    try:
        check_layout(wrapped, probe, site.path)
    except InputError:
        return False
    finally:
        wrapped.close()
        for hook in hooks:
            hook.remove()
    return order[:1] != ["attn"]


def _known_site(model: nn.Module, layer: str, stage: int | None, block: int) -> Site | None:
    """The embedding of a model that is built as timm's ViT or Swin; None for others."""
    stages: Any = getattr(model, "layers", None)
    if _is_list(stages) and all(_is_list(getattr(s, "blocks", None)) for s in stages):
        return _hierarchical_site(stages, layer, stage, block)
    blocks: Any = getattr(model, "blocks", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if _is_list(blocks) and grid is not None:
        if stage is not None:
            raise InputError(
                f"stage is {stage}, but {type(model).__name__} has blocks and no stages: "
                "leave it out"
            )
        path = f"blocks.{_index(block, len(blocks), 'block')}"
        if (found := _layer_path(blocks[block], path, layer)) is None:
            return None
        return Site(
            found,
            Tokens(int(getattr(model, "num_prefix_tokens", 0)), (int(grid[0]), int(grid[1]))),
            FLAT_THRESHOLD,
            layer,
        )
    return None


def site_of_spec(model: nn.Module, spec: ModelSpec, layer: str = "norm1") -> Site:
    """The embedding that `spec` names; `InputError` if `model` has no such submodule."""
    try:
        model.get_submodule(spec.layer_path)
    except AttributeError as error:
        raise InputError(
            f"ModelSpec: no submodule '{spec.layer_path}' in {type(model).__name__} ({error}): "
            "take a path from model.named_modules()"
        ) from None
    if spec.grid is not None and spec.token_layout == "BND":
        arrange: Callable[[Tensor], Tensor] = Tokens(spec.prefix_tokens, spec.grid)
    else:
        arrange = Map(channels_last=spec.token_layout == "BHWD")
    return Site(spec.layer_path, arrange, spec.distance_threshold, layer)


class WithEmbedding(nn.Module):
    """Images (B,channels,H,W) to scores (B,C) and embedding (B,D,h,w), both float32.

    Parameters
    ----------
    model : maps images to logits (B,C). It is put into evaluation mode, and carries forward hooks
        until `close`.
    site : where its embedding is.
    scores : what makes scores of the logits; None is a softmax.
    """

    def __init__(self, model: nn.Module, site: Site, scores: HeadScores | None = None) -> None:
        super().__init__()
        self.model = model
        self.arrange = site.arrange
        self.scores = Softmax() if scores is None else scores
        self._captured, self._tokens = _Captured(), _Captured()
        self._hooks = [model.get_submodule(site.path).register_forward_hook(self._captured)]
        self._gives_tokens = False
        self.eval()

    def give_tokens(self, first_block: nn.Module) -> None:
        """Give a third output from now on: the tokens (B,T,W) float32 that `first_block` takes."""
        self._hooks.append(first_block.register_forward_pre_hook(self._tokens))
        self._gives_tokens = True

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self._captured.outputs
        outputs.clear()
        self._tokens.outputs.clear()
        logits = logits_of(self.model(images))
        if len(outputs) == 1 and isinstance(outputs[0], tuple | list) and outputs[0]:
            outputs[0] = outputs[0][0]  # a block that gives its attentions too
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            raise InputError(
                f"the embedding's layer ran {len(outputs)} times in one pass, or gives no "
                "tensor: choose a layer that runs once and gives one"
            )
        embedding = self.arrange(outputs.pop())
        given = self.scores(logits.float()), embedding.float().contiguous()
        if not self._gives_tokens:
            return given
        ((tokens, *_),) = self._tokens.outputs
        return *given, tokens.float()

    def close(self) -> None:
        """Take the hooks off the model, which is the caller's. Twice is fine."""
        for hook in self._hooks:
            hook.remove()
        self._captured.outputs.clear()
        self._tokens.outputs.clear()


class _Captured:
    """A forward hook that keeps what the module gave, or took.

    An object of its own: torch.export puts copies in the place of a module's lists and dicts, and
    the hook would go on filling the original.
    """

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def __call__(self, module: nn.Module, *values: Any) -> None:
        self.outputs.append(values[-1])  # a hook before the pass is given the inputs alone


def _hierarchical_site(stages: Any, layer: str, stage: int | None, block: int) -> Site | None:
    """The embedding in a model of stages whose blocks work on (B,h,w,D): Swin."""
    chosen = _index(max(len(stages) - 2, 0) if stage is None else stage, len(stages), "stage")
    blocks = stages[chosen].blocks
    chosen_block = _index(block, len(blocks), "block")
    module = blocks[chosen_block]
    path = _layer_path(module, f"layers.{chosen}.blocks.{chosen_block}", layer)
    if path is None:
        return None
    arrange: Callable[[Tensor], Tensor] = Map(channels_last=True)
    if layer == "attn":
        try:
            h, w = module.input_resolution
            rows, columns = module.window_size
            shift = module.shift_size
        except (AttributeError, TypeError):
            return None
        arrange = Windows((h, w), (rows, columns), (int(shift[0]), int(shift[1])))
    return Site(path, arrange, HIERARCHICAL_THRESHOLD, layer)


def _layer_path(block: nn.Module, path: str, layer: str) -> str | None:
    """Path of `layer` of the block at `path`; None if it has none."""
    if layer == "block":
        return path
    return f"{path}.{layer}" if isinstance(getattr(block, layer, None), nn.Module) else None


def _index(index: int, length: int, what: str) -> int:
    """`index` counted from the start; `InputError` outside [-length, length)."""
    if not -length <= index < length:
        raise InputError(f"{what} is {index}, expected one of {-length} to {length - 1}")
    return index % length


def _is_list(module: Any) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and len(module) > 0
