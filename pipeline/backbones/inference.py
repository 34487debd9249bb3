"""A backbone for inference: its batch norms are folded into the convolutions before them, and it is channels_last.

In evaluation mode a batch norm is a scale and a shift per channel, which the convolution can do itself:
w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta (Jacob et al., CVPR 2018, eq. 14).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.backbones.load import Backbone

# Side in pixels of the image that shows which convolution feeds which batch norm: enough for a stride of 32.
_SIDE = 64


def for_inference(backbone: Backbone) -> Backbone:
    """A copy without batch norms, frozen, in channels_last; equal to 1e-5 of the largest activation, and faster.

    The given backbone stays as it is, and so does a batch norm that takes something else than one convolution's output.
    """
    folded = copy.deepcopy(backbone).eval()
    for name, (convolution, norm) in _fed_by(folded).items():
        weight, bias = convolution.weight, convolution.bias
        mean, variance = norm.running_mean, norm.running_var
        fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, norm.weight, norm.bias)  # type: ignore[arg-type]
        convolution.weight, convolution.bias = fused
        parent, _, child = name.rpartition(".")
        # timm's batch norms also hold the activation behind them.
        setattr(folded.get_submodule(parent), child, getattr(norm, "act", nn.Identity()))
    # As a method of the module, `to` would keep the type of its memory format from mypy.
    folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return folded.requires_grad_(False)


def _fed_by(backbone: Backbone) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolution whose output each batch norm takes, by the name of the norm: seen in a forward pass."""
    made: dict[int, tuple[Tensor, nn.Conv2d]] = {}
    found: dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]] = {}

    def see_convolution(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made[id(output)] = output, module  # the tensor too, or a later one could get its id

    def see_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) in made:
            found[names[module]] = made[id(inputs[0])][1], module

    names = {module: name for name, module in backbone.named_modules()}
    hooks = [m.register_forward_hook(see_convolution) for m in names if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(see_norm) for m in names if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        x = backbone.stem(torch.zeros(1, 3, _SIDE, _SIDE, device=backbone.device))
        for stage in backbone.stages:
            x = stage(x)
        backbone.head(x)
    for hook in hooks:
        hook.remove()
    return found
