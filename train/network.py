"""The network that training changes: a backbone, its pooled embedding, and a projection head for the proxy classes."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, cat, nn

from pipeline.backbone import Backbone
from train.scorers import Gaussian


def pooled_embedding(activations: list[Tensor]) -> Tensor:
    """(B,D) float32: the global averages of every stage's activations (B,C,h,w), one behind the other."""
    return cat([a.float().mean((2, 3)) for a in activations], 1)


def patch_embedding(activations: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """(B,D,h,w) float32 on the grid (h,w): the stages locally averaged, resized and stacked.

    The neighbourhood average (3x3) and the resizing are those of PatchCore (Roth et al., arXiv 2106.08265, eq. 2-4); a
    stage finer than the grid is averaged down to it.
    """
    averaged = [F.avg_pool2d(a.float(), 3, stride=1, padding=1, count_include_pad=False) for a in activations]
    return cat([_on_grid(a, grid) for a in averaged], 1)


def _on_grid(a: Tensor, grid: tuple[int, int]) -> Tensor:
    if a.shape[2] > grid[0] or a.shape[3] > grid[1]:
        return F.adaptive_avg_pool2d(a, grid)
    return F.interpolate(a, size=grid, mode="bilinear", align_corners=False)


def embed(backbone: Backbone, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled embeddings (B,D) and patch embeddings (B,E,h,w) of images (B,3,H,W) on the 0..255 scale, in one forward.

    The backbone's spec says which stages make either.
    """
    spec = backbone.spec
    wanted = [stage for stage in spec.stages if stage in {*spec.embedding_stages, *spec.patch_stages}]
    activations = backbone.activations(backbone.normalise(images), wanted)
    by_stage = dict(zip(wanted, activations, strict=True))
    pooled = pooled_embedding([by_stage[stage] for stage in spec.embedding_stages])
    rows, columns = by_stage[spec.patch_grid].shape[2:]
    return pooled, patch_embedding([by_stage[stage] for stage in spec.patch_stages], (rows, columns))


def log_odds(logits: Tensor) -> Tensor:
    """(B,) log(p(any negative class) / p(normal)) of logits (B,classes): does not saturate, as the probability does."""
    return logits[:, 1:].logsumexp(1) - logits[:, 0]


class Whitening(nn.Module):
    """(B,D) embeddings to (B,D) with the normals' mean at 0 and their spread the same in every direction."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("factor", torch.eye(width))

    @torch.no_grad()
    def fit(self, gaussian: Gaussian) -> None:
        """Take the normals' mean and precision; a normal's length becomes about 1."""
        cast(Tensor, self.mean).copy_(gaussian.mean)
        cast(Tensor, self.factor).copy_(gaussian.factor / len(gaussian.mean) ** 0.5)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Whiten."""
        return (embeddings - cast(Tensor, self.mean)) @ cast(Tensor, self.factor)


class CutSwapNetwork(nn.Module):
    """Backbone and projection head, over one embedding.

    The head sees embeddings in the geometry of the Gaussian that scores them: it starts from the pretrained normals'
    whitening, which does not change. frozen: training leaves the backbone as it was pretrained, so that one forward of
    it serves both.
    """

    def __init__(self, backbone: Backbone, classes: int, frozen: bool) -> None:
        super().__init__()
        self.classes = classes
        self.backbone = backbone
        self.frozen = frozen
        self.stages = backbone.spec.embedding_stages
        with torch.no_grad():
            blank = torch.zeros(1, 3, 64, 64, device=backbone.device)
            width = pooled_embedding(backbone.activations(blank, self.stages)).shape[1]
        self.whitening = Whitening(width)
        self.head = nn.Linear(width, classes)

    def embedding(self, images: Tensor) -> Tensor:
        """Pooled embeddings (B,D) of images (B,3,H,W) on the 0..255 scale."""
        return pooled_embedding(self.backbone.activations(self.backbone.normalise(images), self.stages))

    def classify(self, embeddings: Tensor) -> Tensor:
        """Class logits (B,classes) of embeddings (B,D); class 0 is normal."""
        logits: Tensor = self.head(self.whitening(embeddings))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B,classes) of images (B,3,H,W) on the 0..255 scale."""
        return self.classify(self.embedding(images))
