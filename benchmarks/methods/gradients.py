"""Gradient methods: Captum's, and Grad-CAM by its formula."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.models import site_of
from vitcx.kernels.host.upsampling import upsample

FloatArray = NDArray[np.float32]

INTEGRATION_STEPS = 50
# Smilkov et al. (2017): 10 to 20 % of the picture's range, 50 draws; a quarter of the draws here.
SMOOTH_DRAWS = 12
SMOOTH_NOISE = 0.15


class _Probability(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return torch.softmax(self.module(images), dim=1)


def _magnitude(attribution: Tensor) -> FloatArray:
    """(1,3,H,W) to (H,W): the sum of the channels' magnitudes."""
    return attribution[0].abs().sum(dim=0).detach().float().numpy()


def integrated_attribution(
    module: nn.Module, image: FloatArray, target: int, steps: int = INTEGRATION_STEPS
) -> tuple[Tensor, float]:
    """(1,3,H,W) attribution from the zero picture, and how far it is from completeness."""
    from captum.attr import IntegratedGradients

    result, delta = IntegratedGradients(_Probability(module)).attribute(
        torch.from_numpy(image)[None],
        target=target,
        n_steps=steps,
        internal_batch_size=10,
        return_convergence_delta=True,
    )
    return result, float(delta[0])


def integrated_gradients(module: nn.Module, image: FloatArray, target: int) -> FloatArray:
    """Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks" (ICML 2017)."""
    return _magnitude(integrated_attribution(module, image, target)[0])


def smooth_grad(module: nn.Module, image: FloatArray, target: int) -> FloatArray:
    """Smilkov et al., "SmoothGrad" (2017): the mean of gradients under noise."""
    from captum.attr import NoiseTunnel, Saliency

    torch.manual_seed(0)
    tunnel = NoiseTunnel(Saliency(_Probability(module)))
    return _magnitude(
        tunnel.attribute(
            torch.from_numpy(image)[None],
            nt_type="smoothgrad",
            nt_samples=SMOOTH_DRAWS,
            nt_samples_batch_size=4,
            stdevs=SMOOTH_NOISE * float(np.ptp(image)),
            target=target,
            abs=False,
        )
    )


def grad_cam(module: nn.Module, image: FloatArray, target: int) -> FloatArray:
    """Selvaraju et al., "Grad-CAM" (ICCV 2017), on the layer that ViT-CX takes.

    The mean slope of the target's logit over the patches weighs each channel; what is below 0 is
    cut. At patch resolution, upsampled as every other map here.
    """
    site = site_of(module)
    kept: list[Tensor] = []
    layer = module.get_submodule(site.path)
    handle = layer.register_forward_hook(lambda _m, _i, out: kept.append(out))
    try:
        logit = module(torch.from_numpy(image)[None])[0, target]
    finally:
        handle.remove()
    (slope,) = torch.autograd.grad(logit, kept)
    activations, slopes = site.arrange(kept[0])[0], site.arrange(slope)[0]
    weights = slopes.mean(dim=(1, 2), keepdim=True)
    low = (weights * activations).sum(dim=0).clamp(min=0).detach().float().numpy()
    return upsample(np.ascontiguousarray(low), image.shape[1:])
