"""Weights and outputs that are no numbers, called that before anything is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcx.runtime.errors import InputError


def check_weights(model: nn.Module) -> None:
    """Raise `InputError` that names the first weight which holds NaN or an infinity."""
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        # Masks of attention are buffers of -inf in some models.
        if bad and (torch.isnan(tensor).any() or name in dict(model.named_parameters())):
            raise InputError(
                f"the weight '{name}' holds NaN or infinite values ({bad} of {tensor.numel()}): "
                "the checkpoint is damaged, or its training diverged"
            )


def check_outputs(outputs: dict[str, Tensor]) -> None:
    """Raise `InputError` if what a model gave for ordinary pictures is not all finite."""
    for name, tensor in outputs.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"the model gives NaN or infinite {name} for ordinary pictures: look at its "
                "weights and at the mean and standard deviation of its pictures"
            )
