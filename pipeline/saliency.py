"""Multilevel LayerCAM (Jiang et al., "LayerCAM", IEEE TIP 2021) with one forward and one backward for all stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.backbones.load import Backbone

# float16 holds no gradient below 6e-8: scores are multiplied by this before it is taken, and maps divided by it.
_GRADIENT_SCALE = 1024.0


def layercam(
    backbone: Backbone,
    x: Tensor,
    stages: Sequence[str],
    target_class: Tensor | None = None,
    precision: str = "float32",
) -> tuple[list[Tensor], Tensor]:
    """Raw LayerCAM maps of every stage, shallow to deep, and the classes whose scores were explained.

    x: (B,3,H,W) float32, normalised. target_class: (B,) int64; None explains each image's top class. precision: one
    of `pipeline.settings.PRECISIONS`, of activations and gradients.
    Returns one (B,h,w) float32 map per stage, 0 or more, at the stage's own resolution, and (B,) int64.

    A map is ``relu(sum over channels of relu(dscore/dactivation) * activation)`` (LayerCAM, eq. 6). Gradients are
    taken with respect only to the activations, and only from the shallowest stage on: weights get none.
    """
    with torch.autocast(x.device.type, getattr(torch, precision), enabled=precision != "float32"):
        activations, scores = _forward(backbone, x, stages)
    if target_class is None:
        target_class = scores.detach().argmax(1)
    scale = _GRADIENT_SCALE if precision == "float16" else 1.0
    with torch.enable_grad():
        # Images do not mix in evaluation mode, so the gradient of the sum holds each image's own.
        score = scores.gather(1, target_class[:, None]).float().sum() * scale
    gradients = torch.autograd.grad(score, activations)
    with torch.no_grad():
        maps = [
            torch.einsum("bchw,bchw->bhw", gradient.float().relu(), activation.float()).relu_().div_(scale)
            for gradient, activation in zip(gradients, activations, strict=True)
        ]
    return maps, target_class


def _forward(backbone: Backbone, x: Tensor, stages: Sequence[str]) -> tuple[list[Tensor], Tensor]:
    """Activations of the stages, the first of them a leaf, and the class scores (B,classes)."""
    activations: list[Tensor] = []
    with torch.no_grad():
        x = backbone.stem(x)
    for name, stage in zip(backbone.stage_names, backbone.stages, strict=True):
        with torch.set_grad_enabled(bool(activations)):
            x = stage(x)
        if name in stages:
            if not activations:
                x = x.detach().requires_grad_()
            activations.append(x)
    with torch.enable_grad():
        return activations, backbone.head(x)


def scale_maps(maps: Sequence[Tensor], size: int) -> Tensor:
    """Raw maps (B,h,w) of L stages to (B,L,size,size) uint8: resized bilinearly, then min-max scaled to 0..255.

    Resizing before clustering is what smooths the coarse, spiky maps: a single hot cell becomes a small blob.
    A flat map becomes 0 everywhere.
    """
    resized = torch.stack(
        [
            F.interpolate(m[:, None].float(), size=(size, size), mode="bilinear", align_corners=False)[:, 0]
            for m in maps
        ],
        dim=1,
    )
    low = resized.amin((2, 3), keepdim=True)
    span = resized.amax((2, 3), keepdim=True) - low
    # Rounding noise on a constant map is no saliency, nor is a span of subnormal numbers, which hold few digits.
    flat = span <= (1e-6 * low.abs()).clamp(min=torch.finfo(torch.float32).tiny)
    scaled = (resized - low) / span.masked_fill(flat, 1.0)
    return (scaled.masked_fill(flat, 0.0) * 255).round().to(torch.uint8)
