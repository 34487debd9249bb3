"""The network that training changes: a backbone, its pooled embedding, and a projection head for the proxy classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.backbones.load import Backbone
from train.features.extract import pooled_embedding
from train.recipe import Recipe


def log_odds(logits: Tensor) -> Tensor:
    """(B,) log(p(any negative class) / p(normal)) of logits (B,classes): does not saturate, as the probability does."""
    return logits[:, 1:].logsumexp(1) - logits[:, 0]


class Whitening(nn.Module):
    """(B,D) embeddings to (B,D) with the normals' mean at 0 and their spread the same in every direction."""

    mean: Tensor
    factor: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("factor", torch.eye(width))

    @torch.no_grad()
    def fit(self, mean: Tensor, factor: Tensor) -> None:
        """Take the normals' mean (D,) and the factor (D,D) of their precision; a normal's length becomes about 1."""
        self.mean.copy_(mean)
        self.factor.copy_(factor / len(mean) ** 0.5)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Whiten."""
        return (embeddings - self.mean) @ self.factor


class CutSwapNetwork(nn.Module):
    """Backbone and projection head, over one embedding.

    The head sees embeddings in the geometry of the Gaussian that scores them: it starts from the pretrained normals'
    whitening, which does not change. frozen: training leaves the backbone as it was pretrained, so that one forward of
    it serves both.
    """

    def __init__(self, backbone: Backbone, recipe: Recipe, classes: int, frozen: bool) -> None:
        super().__init__()
        self.classes = classes
        self.backbone = backbone
        self.frozen = frozen
        self.recipe = recipe
        with torch.no_grad():
            blank = torch.zeros(1, 3, 64, 64, device=backbone.device)
            width = self.embedding(blank).shape[1]
        self.whitening = Whitening(width)
        self.head = nn.Linear(width, classes)

    def learned_state(self) -> dict[str, Tensor]:
        """The weights that training changes, and the whitening; of a frozen backbone none."""
        state = self.state_dict()
        return {name: state[name] for name in state if not (self.frozen and name.startswith("backbone."))}

    def load_learned(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `learned_state`; the backbone in a state of an earlier version is left out if it is frozen."""
        learned = self.learned_state().keys()
        self.load_state_dict({**self.state_dict(), **{name: state[name] for name in learned}})

    def embedding(self, images: Tensor) -> Tensor:
        """Pooled embeddings (B,D) of images (B,3,H,W) on the 0..255 scale."""
        activations = self.backbone.activations(self.backbone.normalise(images), self.recipe.embedding_stages)
        return pooled_embedding(activations, self.recipe.pooling)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Class logits (B,classes) of embeddings (B,D); class 0 is normal."""
        logits: Tensor = self.head(self.whitening(embeddings))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B,classes) of images (B,3,H,W) on the 0..255 scale."""
        return self.classify(self.embedding(images))
