"""The arm `finetuned`: the abstract of CutSwap read literally, a backbone that learns normals against negatives.

Bounded steps of SGD on the backbone and a linear head of its embedding, batch statistics as they were pretrained.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.load import Backbone
from pipeline.progress import Advance
from pipeline.threads import CORES
from train.cell_folder import CellFolder
from train.features.extract import image_embedding
from train.negatives.augment import jitter_light
from train.negatives.make import make_negative
from train.negatives.stream import Normal, NormalStream
from train.optimise import Plan, optimise
from train.recipe import Recipe
from train.settings import FinetuneSettings

_Part = tuple[Tensor, Tensor]


class Classifier(nn.Module):
    """A backbone, the embedding of a recipe, and a linear head; logits (B,2) of normal and negative."""

    def __init__(self, backbone: Backbone, recipe: Recipe) -> None:
        """backbone: it is trained itself, not a copy."""
        super().__init__()
        self.backbone, self._recipe = backbone, recipe
        with torch.no_grad():
            width = self.embedding(torch.zeros(1, 3, 64, 64, device=backbone.device)).shape[1]
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2)).to(backbone.device)
        for module in (backbone.stem, backbone.stages):
            module.requires_grad_(True)

    def embedding(self, images: Tensor) -> Tensor:
        """(B,D) of images (B,3,H,W) on the 0..255 scale."""
        return image_embedding(self.backbone, self._recipe, images)

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        logits: Tensor = self.head(self.embedding(images))
        return logits


def finetune(
    backbone: Backbone,
    recipe: Recipe,
    stream: NormalStream,
    settings: FinetuneSettings,
    seed: int,
    cell: CellFolder,
    advance: Advance,
) -> None:
    """Train the backbone in place; see `optimise`."""
    torch.manual_seed(seed)
    network = Classifier(backbone, recipe)
    network.eval()  # batch statistics stay those of pretraining
    groups = [
        {"params": list(network.head.parameters()), "peak": settings.head_lr},
        {"params": [p for p in backbone.parameters() if p.requires_grad], "peak": settings.backbone_lr},
    ]
    optimiser = torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, weight_decay=settings.weight_decay)

    def loss_of(part: _Part) -> Tensor:
        images, labels = part
        return F.cross_entropy(network(images), labels, reduction="sum") / (2 * settings.batch_size)

    def batches(start: int) -> Iterator[Iterator[_Part]]:
        for step, batch in enumerate(stream.batches(settings.batch_size, seed, start), start):
            normals = ((normal, [seed, step, i]) for i, normal in enumerate(batch.normals(stream.settings)))
            yield CORES.spread(made, normals)

    def made(item: tuple[Normal, list[int]]) -> _Part:
        """A normal and its negative, with the same light: nothing but the swap tells the two apart."""
        normal, key = item
        rng = np.random.default_rng(key)
        pair = normal.image, make_negative(settings.negatives, normal, rng)
        light = int(rng.integers(2**63))
        lit = [jitter_light(image, settings.colour_jitter, np.random.default_rng(light)) for image in pair]
        images = torch.from_numpy(np.stack(lit)).to(backbone.device).permute(0, 3, 1, 2)
        return images, torch.tensor([0, 1], device=backbone.device)

    optimise(network, optimiser, batches, loss_of, Plan(settings.steps), cell, advance)
    backbone.requires_grad_(False)
