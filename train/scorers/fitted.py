"""What is fitted to the normals and learned from negatives: what it says of images, before calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones.load import Backbone
from train.features.extract import Item, embed, image_embedding, map_images
from train.features.grid import on_grid
from train.localiser.network import Localiser
from train.recipe import Recipe
from train.scorers.gaussian import Gaussian
from train.scorers.nearest import PatchNearest


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is found of B images.

    image: distances (B,) float64 by scorer, higher more anomalous; distances: (B,h,w) float32 of the cells, 0 or more;
    logits: (B,h,w) float32 of the localiser, None where there is none.
    """

    image: dict[str, Tensor]
    distances: Tensor
    logits: Tensor | None

    def to(self, device: str) -> Evidence:
        """The same on another device."""
        logits = None if self.logits is None else self.logits.to(device)
        return Evidence({n: v.to(device) for n, v in self.image.items()}, self.distances.to(device), logits)


def join(found: Iterable[Evidence]) -> Evidence:
    """All in one, in their order."""
    parts = list(found)
    logits = [part.logits for part in parts if part.logits is not None]
    image = {name: torch.cat([part.image[name] for part in parts]) for name in parts[0].image}
    return Evidence(image, torch.cat([part.distances for part in parts]), torch.cat(logits) if logits else None)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Networks and scorers, all on one device.

    pretrained: the backbone; scorers: those of image embeddings by name. projection: of patches (E,d), or None;
    references: the nearest of the patches that it projects. localiser: on the pretrained backbone's activations, None
    where nothing was trained. finetuned: the backbone whose embeddings "finetuned" scores, else None.
    """

    recipe: Recipe
    pretrained: Backbone
    scorers: Mapping[str, Gaussian]
    projection: Tensor | None
    references: PatchNearest
    localiser: Localiser | None = None
    finetuned: Backbone | None = None

    def evidence(self, images: Tensor, at_once: bool = False) -> Evidence:
        """What is found of images (B,3,H,W) uint8; at_once: without chunks, as a program is."""
        shared = None if self.localiser is None else self.localiser.input_stage
        found = embed(self.pretrained, self.recipe, images, shared)
        pooled = dict.fromkeys(self.scorers, found.pooled)
        if self.finetuned is not None:
            pooled["finetuned"] = image_embedding(self.finetuned, self.recipe, images)
        logits = None
        if self.localiser is not None:
            assert found.shared is not None
            logits = on_grid(self.localiser(found.shared), found.grid)
        scores = {name: scorer.scores(pooled[name]) for name, scorer in self.scorers.items()}
        return Evidence(scores, on_grid(self.distances(found.patches, at_once), found.grid), logits)

    def distances(self, patches: Tensor, at_once: bool = False) -> Tensor:
        """(B,h,w) distances of patch embeddings (B,E,h,w) to the nearest normal one."""
        flat = patches.permute(0, 2, 3, 1).flatten(0, 2)
        projected = flat if self.projection is None else flat @ self.projection
        return self.references.scores(projected, at_once).view(-1, *patches.shape[2:])

    def each(self, items: Iterable[Item], load: Callable[[Item], NDArray[np.uint8]]) -> Iterator[Evidence]:
        """The evidence, on the CPU, of the images (H,W,3) uint8 that `load` makes of items, in their order.

        Images are loaded and scored as `map_images` does. ValueError for a score that is not finite.
        """
        for found in map_images(self.evidence, items, load, self.pretrained.device):
            logits = () if found.logits is None else (found.logits,)
            if not all(bool(values.isfinite().all()) for values in (*found.image.values(), found.distances, *logits)):
                raise ValueError("a score is not finite")
            yield found.to("cpu")
