"""What is fitted to the normals and learned from negatives: the scores of an image and its map, before calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones.load import Backbone
from train.features.extract import Item, embed, map_images
from train.features.network import CutSwapNetwork, log_odds
from train.recipe import Recipe
from train.scorers.gaussian import Gaussian
from train.scorers.maps import smooth_maps, top_mean
from train.scorers.nearest import KNearest, PatchNearest

# Scorers that use the trained network.
_OF_THE_TRAINED = {"gde", "knn", "head"}


def needs_network(names: Iterable[str]) -> bool:
    """Whether one of these scorers uses the trained network."""
    return not _OF_THE_TRAINED.isdisjoint(names)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Networks and scorers, all on one device.

    pretrained: the backbone before training; network: after it, None where nothing was trained. scorers: those of image
    embeddings by name. projection: the discriminant of patches (E,d), or None; references: the nearest of the patches
    that it projects.
    """

    recipe: Recipe
    pretrained: Backbone
    network: CutSwapNetwork | None
    scorers: Mapping[str, Gaussian | KNearest]
    projection: Tensor | None
    references: PatchNearest

    def score(self, images: Tensor, names: Sequence[str], at_once: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """Scores (B,) float64 by name, and anomaly maps (B,S,S) float32, 0 or more, of images (B,3,S,S) uint8.

        names: of the recipe's `scorers`; the pretrained network's embeddings and the map are made whatever they are.
        at_once: without chunks, as a program is.
        """
        recipe = self.recipe
        pooled, patches = embed(self.pretrained, recipe, images)
        trained = pooled
        if self.network is not None and not self.network.frozen and needs_network(names):
            trained = self.network.embedding(images)
        distances = self.distances(patches, at_once)
        scores = {}
        for name in names:
            if name in self.scorers:
                scores[name] = self.scorers[name].scores(trained if name in _OF_THE_TRAINED else pooled)
            elif name == "head":
                assert self.network is not None  # without one, a recipe names no head
                scores[name] = log_odds(self.network.classify(trained).double())
            else:  # "patches", and what PatchCore calls the same
                scores[name] = top_mean(distances, recipe.top_share).double()
        return scores, smooth_maps(distances, images.shape[-1], recipe.blur)

    def distances(self, patches: Tensor, at_once: bool = False) -> Tensor:
        """(B,h,w) distances of patch embeddings (B,E,h,w) to the nearest normal one, in the learned directions."""
        flat = patches.permute(0, 2, 3, 1).flatten(0, 2)
        projected = flat if self.projection is None else flat @ self.projection
        return self.references.scores(projected, at_once).view(-1, *patches.shape[2:])

    def score_batches(
        self, items: Iterable[Item], load: Callable[[Item], NDArray[np.uint8]], names: Sequence[str]
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """What `score` gives of the images (S,S,3) uint8 that `load` makes of items, in their order, on the CPU.

        Images are loaded and scored as `map_images` does. ValueError for a score that is not finite.
        """
        for scores, maps in map_images(partial(self.score, names=names), items, load, self.pretrained.device):
            for name, values in scores.items():
                if not bool(values.isfinite().all()):
                    raise ValueError(f"a score is not finite: {name}")
            yield {name: values.cpu() for name, values in scores.items()}, maps.cpu()

    def score_all(
        self, items: Iterable[Item], load: Callable[[Item], NDArray[np.uint8]], names: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What `score_batches` gives of one item or more, all in one."""
        found = list(self.score_batches(items, load, names))
        return {name: torch.cat([s[name] for s, _ in found]) for name in names}, torch.cat([maps for _, maps in found])
