"""What a user says of a model that is not from timm, so that it can become a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vitcx.runtime.errors import InputError
from vitcx.runtime.manifest import CROP_MODES, INTERPOLATIONS

TokenLayout = Literal["BND", "BHWD", "BDHW"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelSpec:
    """Where a module's patch embedding is, and how its pictures are made.

    The module maps images (B,channels,H,W) float32, normalised by `mean` and `std`, to logits
    (B,C).

    Attributes
    ----------
    layer_path : dotted path of the submodule whose output is the embedding, as in
        ``module.get_submodule``.
    input_size : (H, W) in pixels.
    grid : (h, w) in patches; needed for the layout "BND", found by a run for the others.
    prefix_tokens : tokens before the patches ([CLS], registers), dropped; "BND" only.
    token_layout : axes of the submodule's output: "BND" tokens, row by row; "BHWD" channels last;
        "BDHW" channels first.
    mean, std : normalisation of values in [0, 1], one number for each channel of the input.
    crop_fraction : in (0, 1]; the resized picture's share that the crop keeps.
    crop_mode : "center" or "squash", as in the bundle's manifest.
    interpolation : the resize filter, one of `vitcx.runtime.manifest.INTERPOLATIONS`.
    class_names : C names; None makes "class 0", "class 1", ...
    distance_threshold : default δ of the clustering, in [0, 1].
    name : of the model, for the manifest; None takes the name of its class.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    layer_path: str
    input_size: tuple[int, int] = (224, 224)
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
    token_layout: TokenLayout = "BND"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_fraction: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    class_names: tuple[str, ...] | None = None
    distance_threshold: float = 0.1
    name: str | None = None

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("token_layout", self.token_layout, get_args(TokenLayout)),
            ("crop_mode", self.crop_mode, CROP_MODES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if value not in allowed:
                raise InputError(
                    f"ModelSpec: {field} is {value!r}, expected one of {', '.join(allowed)}"
                )
        if self.token_layout == "BND" and self.grid is None:
            raise InputError(
                "ModelSpec: the layout 'BND' does not say how its tokens lie in the picture: "
                "give grid=(rows, columns)"
            )
        if self.token_layout != "BND" and self.prefix_tokens:
            raise InputError(
                f"ModelSpec: prefix_tokens is {self.prefix_tokens}, but the layout "
                f"{self.token_layout!r} has no tokens to drop: leave it 0"
            )
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(
                f"ModelSpec: mean {self.mean} and std {self.std} are not one each for a channel"
            )
        if min(self.input_size) < 1 or min(self.grid or (1, 1)) < 1 or self.prefix_tokens < 0:
            raise InputError(
                f"ModelSpec: input_size {self.input_size}, grid {self.grid} and prefix_tokens "
                f"{self.prefix_tokens} must be positive (prefix_tokens may be 0)"
            )
