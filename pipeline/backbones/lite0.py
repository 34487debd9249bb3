"""EfficientNet-Lite0 in plain torch, so that a detector is loaded without the seconds that the import of timm takes.

It is timm's `tf_efficientnet_lite0`: the same operations, and the same names of weights. Weights come from elsewhere.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Of each stage: kernel, stride, expansion, channels and number of blocks (Tan and Le, arXiv 1905.11946, table 1).
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM, _HEAD, _CLASSES, _EPSILON = 32, 1280, 1000, 1e-3


class Lite0(nn.Module):
    """The network; its parts are run by `pipeline.backbones.load.Backbone`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = _convolution(3, _STEM, 3, stride=2), _Norm(_STEM, active=True)
        self.blocks, channels = nn.Sequential(), _STEM
        for kernel, stride, expansion, out, count in _STAGES:
            stage = nn.Sequential()
            for number in range(count):
                stage.append(_Block(channels, out, kernel, 1 if number else stride, expansion))
                channels = out
            self.blocks.append(stage)
        self.conv_head, self.bn2 = _convolution(channels, _HEAD, 1), _Norm(_HEAD, active=True)
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(_HEAD, _CLASSES)


class _Block(nn.Module):
    """Widen, filter each channel, narrow; without the first where the expansion is 1."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.skips = stride == 1 and channels == out
        wide = channels * expansion
        filtering = _convolution(wide, wide, kernel, stride=stride, groups=wide)
        if expansion == 1:
            self.conv_dw, self.bn1 = filtering, _Norm(wide, active=True)
            self.conv_pw, self.bn2 = _convolution(wide, out, 1), _Norm(out, active=False)
        else:
            self.conv_pw, self.bn1 = _convolution(channels, wide, 1), _Norm(wide, active=True)
            self.conv_dw, self.bn2 = filtering, _Norm(wide, active=True)
            self.conv_pwl, self.bn3 = _convolution(wide, out, 1), _Norm(out, active=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) to (B,C',h',w')."""
        y = x
        for part in self.children():  # as they were made
            y = part(y)
        return y + x if self.skips else y


class _Norm(nn.BatchNorm2d):
    """A batch norm and the activation behind it."""

    def __init__(self, channels: int, *, active: bool) -> None:
        super().__init__(channels, eps=_EPSILON)
        self.act = nn.ReLU6(inplace=True) if active else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, and activate."""
        activated: Tensor = self.act(super().forward(x))
        return activated


class _Strided(nn.Conv2d):
    """A convolution that pads as TensorFlow does: what is odd on the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) to (B,C',ceil(h / stride),ceil(w / stride))."""
        (high, wide), kernel, stride = x.shape[-2:], self.kernel_size[0], self.stride[0]
        down, across = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (high, wide))
        x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(x)


def _convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=False)
    return _Strided(channels, out, kernel, stride, groups=groups, bias=False)
