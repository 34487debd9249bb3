"""What the cells of a category share, whatever their arm and seed: it is read and computed once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.cache.category import CachedCategory
from train.evaluation.test_set import TestSet
from train.negatives.make import make_negative
from train.negatives.stream import NormalImages, NormalStream
from train.recipe import Recipe
from train.scorers.fit import OfNormals, fit_normals


class CategoryData:
    """A category of a cache, the split of its normals, its test images and its pretrained network.

    trained_on, held_out: the images of the split. Several cells may use it at once.
    """

    def __init__(
        self,
        category: CachedCategory,
        trained_on: NDArray[np.int64],
        held_out: NDArray[np.int64],
        tests: TestSet,
        device: torch.device,
    ) -> None:
        """trained_on, held_out: rows of the cache."""
        self.category, self.settings, self.tests, self.device = category, category.settings, tests, device
        self.stream = NormalStream(category, trained_on)
        self.trained_on, self.held_out = (NormalImages(self.stream, rows) for rows in (trained_on, held_out))
        self._of_normals: dict[tuple[object, ...], tuple[int, OfNormals]] = {}

    @cached_property
    def plain(self) -> Backbone:
        """The backbone as it is loaded, on the CPU."""
        return load_backbone(self.settings.backbone, self.settings.weights, self.settings.seed)

    @cached_property
    def pretrained(self) -> Backbone:
        """The backbone for inference, on the device."""
        return for_inference(self.plain).to(self.device)

    def held_out_negatives(self, kind: str, seed: int) -> Iterator[NDArray[np.uint8]]:
        """A negative of each held-out normal."""
        for row in self.held_out.rows:
            (normal,) = self.stream.read(np.array([row])).normals(self.settings)
            negative = make_negative(kind, normal, np.random.default_rng([seed, int(row)]))
            yield negative.round().astype(np.uint8)

    def of_normals(self, recipe: Recipe, seed: int) -> OfNormals:
        """What a recipe fits to the normals to train on; that of the last seed stays for the next arm."""
        rules = recipe.fitted_to_normals
        if (kept := self._of_normals.get(rules)) is None or kept[0] != seed:
            kept = seed, fit_normals(self.pretrained, recipe, self.trained_on, len(self.trained_on.rows), seed)
            self._of_normals[rules] = kept
        return kept[1]
