"""The localiser: logits of cells, positive where the network finds that a cell was changed.

Its trunk is the backbone's, up to the last stage at stride 16. What comes before the first stage at stride 8 stays
frozen, so that one forward pass of it serves the localiser and the embeddings; the stages behind are trained.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pipeline.backbones.load import Backbone
from train.features.grid import on_grid

_FINE, _COARSE = 8, 16  # strides, in pixels, of the first and the last trained stages; the cells have the first
_SIDE = 64
_GROUPS = 8
# Log-odds of a changed cell before training: most cells are not changed.
_FIRST_LOGIT = -2.0
# Channels that each stage is brought to, and those of the two convolutions behind them.
_WIDTH, _HIDDEN = 48, 64


class Localiser(nn.Module):
    """Logits of cells from the activations of one frozen stage.

    input_stage: the name of that stage, the last before stride 8.
    """

    def __init__(self, backbone: Backbone) -> None:
        """backbone: for inference; its stages are copied, and trained from where they are."""
        super().__init__()
        with torch.no_grad():
            blank = torch.zeros(1, 3, _SIDE, _SIDE, device=backbone.device)
            shapes = [a.shape[1:] for a in backbone.activations(blank, backbone.stage_names)]
        chosen = [i for i, shape in enumerate(shapes) if _FINE <= _SIDE // shape[1] <= _COARSE]
        self.input_stage = backbone.stage_names[chosen[0] - 1]
        self.stages = nn.ModuleList(copy.deepcopy(backbone.stages[i]) for i in chosen).requires_grad_(True)
        widths = [shapes[i][0] for i in (chosen[0] - 1, *chosen)]
        together = _WIDTH * len(widths)
        self.bring = nn.ModuleList(nn.Conv2d(width, _WIDTH, 1) for width in widths)
        self.head = nn.Sequential(
            nn.GroupNorm(_GROUPS, together),
            *(nn.Conv2d(together, _HIDDEN, 3, padding=1), nn.GroupNorm(_GROUPS, _HIDDEN), nn.ReLU()),
            *(nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1), nn.GroupNorm(_GROUPS, _HIDDEN), nn.ReLU()),
            last := nn.Conv2d(_HIDDEN, 1, 1),
        )
        assert last.bias is not None
        nn.init.constant_(last.bias, _FIRST_LOGIT)
        self.to(backbone.device)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,h,w) on the grid of stride 8, of activations (B,C,2h,2w) of `input_stage`."""
        found = [x]
        for stage in self.stages:
            found.append(stage(found[-1]))
        grid = found[1].shape[2:]
        brought = [on_grid(bring(a), grid) for bring, a in zip(self.bring, found, strict=True)]
        logits: Tensor = self.head(torch.cat(brought, 1))[:, 0]
        return logits
