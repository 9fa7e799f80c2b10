"""Where a model's patch embedding is, and how it becomes (B,D,h,w)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitcx.export.sources.spec import ModelSpec
from vitcx.runtime.errors import InputError

# The paper's thresholds: 0.1 for ViT and DeiT, 0.05 for Swin.
VIT_DISTANCE_THRESHOLD = 0.1
SWIN_DISTANCE_THRESHOLD = 0.05


@dataclass(frozen=True)
class Site:
    """A submodule whose output is the embedding.

    Attributes
    ----------
    path : of the submodule in the model.
    arrange : makes its output (B,D,h,w); a shape that does not fit raises `InputError`.
    distance_threshold : default δ for this family.
    """

    path: str
    arrange: Callable[[Tensor], Tensor]
    distance_threshold: float


@dataclass(frozen=True)
class _Tokens:
    """(B, prefix + h·w, D) tokens, row by row."""

    prefix: int
    grid: tuple[int, int]

    def __call__(self, tokens: Tensor) -> Tensor:
        h, w = self.grid
        if tokens.ndim != 3 or tokens.shape[1] != self.prefix + h * w:
            raise InputError(
                f"the layer gives {_shape(tokens)}, expected (B, tokens, D) with {self.prefix} "
                f"prefix tokens and a grid of {h}x{w}, {self.prefix + h * w} tokens: check the "
                "layer, its grid and its prefix tokens"
            )
        patches = tokens[:, self.prefix :].transpose(1, 2)  # (B, D, h·w)
        return patches.reshape(*patches.shape[:2], h, w)


@dataclass(frozen=True)
class _Map:
    """(B,h,w,D) or (B,D,h,w) feature maps."""

    channels_last: bool

    def __call__(self, features: Tensor) -> Tensor:
        if features.ndim != 4:
            expected = "(B, h, w, D)" if self.channels_last else "(B, D, h, w)"
            raise InputError(f"the layer gives {_shape(features)}, expected {expected}")
        return features.permute(0, 3, 1, 2) if self.channels_last else features


@dataclass(frozen=True)
class _Windows:
    """(B·windows, rows·columns, D) tokens of Swin's attention, of a grid that was rolled by
    minus `shift`, padded below and right to whole windows, and cut into windows row by row.
    """

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]

    def __call__(self, tokens: Tensor) -> Tensor:
        (h, w), (rows, columns) = self.grid, self.window
        down, across = -(-h // rows), -(-w // columns)
        if tokens.ndim != 3 or tokens.shape[1] != rows * columns:
            raise InputError(
                f"the attention gives {_shape(tokens)}, expected (B·windows, {rows * columns}, D)"
            )
        x = tokens.reshape(-1, down, across, rows, columns, tokens.shape[-1])
        x = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, D, padded h, padded w)
        x = x[:, :, :h, :w]
        return torch.roll(x, self.shift, (2, 3)) if any(self.shift) else x


def find_site(
    model: nn.Module, layer: str = "norm1", stage: int | None = None, block: int = -1
) -> Site:
    """Find the embedding of a timm model.

    Parameters
    ----------
    model : a timm model whose input size is final.
    layer : "norm1" (the block's first normalisation), "attn" (its attention's output) or "block".
    stage : index of Swin's stage, from the end if negative; None is the second-to-last.
    block : index of the block, in the stage or the model.

    Raises
    ------
    InputError
        If the model has no transformer blocks, or its grid cannot be found.
    """
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
        return Site(
            _layer_path(blocks[block], path, layer),
            _Tokens(int(getattr(model, "num_prefix_tokens", 0)), (int(grid[0]), int(grid[1]))),
            VIT_DISTANCE_THRESHOLD,
        )
    name = type(model).__name__
    if not any("attention" in type(m).__name__.lower() for m in model.modules()):
        raise InputError(
            f"{name} is not a Vision Transformer (it has no attention; a convolutional network?): "
            "ViT-CX needs patch embeddings; choose a ViT, DeiT or Swin"
        )
    raise InputError(
        f"cannot find the patch grid of {name}: from Python, call "
        "vitcx.export.export_model(module, out, spec=ModelSpec(layer_path=..., grid=...))"
    )


def site_of_spec(model: nn.Module, spec: ModelSpec) -> Site:
    """The embedding that `spec` names; `InputError` if `model` has no such submodule."""
    try:
        model.get_submodule(spec.layer_path)
    except AttributeError as error:
        raise InputError(
            f"ModelSpec: no submodule '{spec.layer_path}' in {type(model).__name__} ({error}): "
            "take a path from model.named_modules()"
        ) from None
    if spec.grid is not None and spec.token_layout == "BND":
        arrange: Callable[[Tensor], Tensor] = _Tokens(spec.prefix_tokens, spec.grid)
    else:
        arrange = _Map(channels_last=spec.token_layout == "BHWD")
    return Site(spec.layer_path, arrange, spec.distance_threshold)


class WithEmbedding(nn.Module):
    """Images (B,3,H,W) to probabilities (B,C) and embedding (B,D,h,w), both float32.

    Parameters
    ----------
    model : maps images to logits (B,C). It is put into evaluation mode, and carries forward hooks
        until `close`.
    site : where its embedding is.
    """

    def __init__(self, model: nn.Module, site: Site) -> None:
        super().__init__()
        self.model = model
        self.arrange = site.arrange
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
        logits = self.model(images)
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
            raise InputError(
                f"the embedding's layer ran {len(outputs)} times in one pass, or gives no "
                "tensor: choose a layer that runs once and gives one"
            )
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InputError(
                f"the model gives {_shape(logits)}, expected logits (B, C): wrap it in a module "
                "that returns them"
            )
        embedding = self.arrange(outputs.pop())
        given = torch.softmax(logits.float(), dim=-1), embedding.float().contiguous()
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


def _hierarchical_site(stages: Any, layer: str, stage: int | None, block: int) -> Site:
    """The embedding in a model of stages whose blocks work on (B,h,w,D): Swin."""
    chosen = _index(max(len(stages) - 2, 0) if stage is None else stage, len(stages), "stage")
    blocks = stages[chosen].blocks
    chosen_block = _index(block, len(blocks), "block")
    module = blocks[chosen_block]
    path = _layer_path(module, f"layers.{chosen}.blocks.{chosen_block}", layer)
    arrange: Callable[[Tensor], Tensor] = _Map(channels_last=True)
    if layer == "attn":
        try:
            h, w = module.input_resolution
            rows, columns = module.window_size
            shift = module.shift_size
        except (AttributeError, TypeError):
            raise InputError(
                f"cannot find the windows of {type(module).__name__}: use the layer norm1 or block"
            ) from None
        arrange = _Windows((h, w), (rows, columns), (int(shift[0]), int(shift[1])))
    return Site(path, arrange, SWIN_DISTANCE_THRESHOLD)


def _layer_path(block: nn.Module, path: str, layer: str) -> str:
    """Path of `layer` of the block at `path`."""
    if layer == "block":
        return path
    if not isinstance(getattr(block, layer, None), nn.Module):
        raise InputError(
            f"the block {type(block).__name__} at '{path}' has no '{layer}': "
            "use the layer block, or a ModelSpec from Python"
        )
    return f"{path}.{layer}"


def _index(index: int, length: int, what: str) -> int:
    """`index` counted from the start; `InputError` outside [-length, length)."""
    if not -length <= index < length:
        raise InputError(f"{what} is {index}, expected one of {-length} to {length - 1}")
    return index % length


def _is_list(module: Any) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and len(module) > 0


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
