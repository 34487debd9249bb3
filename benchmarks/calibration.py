"""Do thresholds keep what they state? `python benchmarks/calibration.py STORE CATEGORY [DRAWS] [COUNT..]`.

So many normals are drawn at random, parts whole, a detector without a localiser is fitted to them, and the normals that
are left are scored. A line per count of normals: the rate of false positives that the threshold states, on average over
draws, the share of the other normals that is above it, and in how many draws this share lies within the stated upper
bound of 95 %. Of every image the network is run once: all draws share its embeddings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from common import integers
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.cache.cache import open_cache
from pipeline.cache.category import CachedCategory
from pipeline.threads import CORES, torch_threads
from train.calibration import Calibration, Unseen, calibrate
from train.features.extract import Embedded, as_it_is, embed, map_images
from train.features.grid import on_grid
from train.groups import group_of
from train.negatives.stream import NormalImages, NormalStream
from train.recipe import Recipe, recipe_of
from train.scorers.fit import Embeddings, fit_normals
from train.scorers.fitted import Evidence, Fitted, join
from train.settings import TrainSettings
from train.split import split

SETTINGS = TrainSettings(negatives="none")


@dataclass(frozen=True, eq=False)
class Normals:
    """The normals of a category: paths, parts (N,), and what the network says of each."""

    backbone: Backbone
    recipe: Recipe
    size: int
    paths: list[str]
    parts: NDArray[np.int64]
    embedded: list[Embedded]

    @classmethod
    def of(cls, category: CachedCategory) -> Normals:
        """All normals of a cached category."""
        rows, paths, digests = category.usable, category.paths, category.digests
        images = NormalImages(NormalStream(category, rows), rows)
        backbone = for_inference(load_backbone(category.settings.backbone, category.settings.weights))
        recipe = recipe_of(category.settings.backbone, SETTINGS)
        found = list(map_images(lambda batch: embed(backbone, recipe, batch), images, as_it_is, backbone.device))
        parts = group_of(images, [digests[row] for row in rows])
        return cls(backbone, recipe, category.settings.image_size, [paths[row] for row in rows], parts, found)

    def fitted(self, places: NDArray[np.int64]) -> Fitted:
        """What the recipe fits to some."""
        chosen = [self.embedded[place] for place in places]
        patches = [one.patches.permute(0, 2, 3, 1).flatten(0, 2) for one in chosen]
        count = -(-(self.recipe.reference_candidates or 0) // len(chosen))
        generator = torch.Generator().manual_seed(0)
        some = [one[torch.randperm(len(one), generator=generator)[:count]] for one in patches]
        nothing = np.zeros(0, np.int64)
        embeddings = Embeddings(torch.cat([one.pooled for one in chosen]), nothing, torch.cat(some), nothing)
        found = fit_normals(embeddings, self.recipe, self.backbone.device, 0)
        assert found.gaussian is not None
        return Fitted(self.recipe, self.backbone, {"gaussian": found.gaussian}, found.projection, found.references)

    def evidence(self, fitted: Fitted, places: NDArray[np.int64]) -> Evidence:
        """What was fitted says of some."""
        chosen = [self.embedded[place] for place in places]
        distances = torch.cat([on_grid(fitted.distances(one.patches), one.grid) for one in chosen])
        pooled = torch.cat([one.pooled for one in chosen])
        scores = {name: scorer.scores(pooled) for name, scorer in fitted.scorers.items()}
        return Evidence(scores, distances, None)


def calibration_of(normals: Normals, places: NDArray[np.int64]) -> tuple[Fitted, Calibration]:
    """What `train` would fit to some of the normals, and its calibration."""
    paths, parts = [normals.paths[place] for place in places], normals.parts[places]
    folds = split(paths, parts, SETTINGS.held_out, SETTINGS.folds).folds

    def scored(fold: NDArray[np.int64]) -> Evidence:
        return normals.evidence(normals.fitted(np.delete(places, fold)), places[fold])

    order = np.concatenate(folds)
    unseen = Unseen(join(CORES.spread(scored, folds)), np.zeros(len(order), bool), parts[order])
    calibration, _ = calibrate(normals.recipe, unseen, (), normals.size, SETTINGS.false_alarms)
    return normals.fitted(places), calibration


def drawn(normals: Normals, count: int, seed: int) -> NDArray[np.int64]:
    """Places of about so many normals: whole parts, at random."""
    numbers = np.random.default_rng([seed, count]).permutation(np.unique(normals.parts))
    ordered = np.concatenate([np.flatnonzero(normals.parts == number) for number in numbers])
    last = normals.parts[ordered[count - 1]]
    return np.sort(np.concatenate([ordered[:count], ordered[count:][normals.parts[ordered[count:]] == last]]))


def measure(normals: Normals, count: int, seed: int) -> tuple[float, float, float]:
    """The rate that a threshold states, its upper bound, and the share of the other normals above it."""
    places = drawn(normals, count, seed)
    fitted, calibration = calibration_of(normals, places)
    others = np.setdiff1d(np.arange(len(normals.paths)), places)
    scores, _ = calibration.scores(normals.recipe, normals.evidence(fitted, others))
    above = [calibration.exceeds(score) for score in scores[normals.recipe.deciding_score].tolist()]
    found = calibration.false_positives
    return found.estimate, found.high, float(np.mean(above))


def main(store: str, category: str, draws: int, counts: Sequence[int]) -> None:
    with torch_threads(1):
        normals = Normals.of(open_cache(store)[category])
        table = Table("normals", "stated", "flagged", "ratio", "within the bound", title=f"{category}, {draws} draws")
        for count in counts:
            found = np.array([measure(normals, count, seed) for seed in range(draws)])
            stated, _, flagged = found.mean(0)
            held = int((found[:, 2] <= found[:, 1]).sum())
            rates = f"{100 * stated:.2f} %", f"{100 * flagged:.2f} %", f"{flagged / stated:.2f}"
            table.add_row(str(count), *rates, f"{held} of {draws}")
            Console(stderr=True).print(f"{count}: {rates} {held}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], integers(sys.argv[3:4], 20)[0], integers(sys.argv[4:], 30, 60, 150))
