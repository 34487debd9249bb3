"""What the cells of a category share, whatever their arm and seed: it is read and computed once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.cache.category import CachedCategory
from pipeline.threads import CORES
from train.evaluation.test_set import TestSet
from train.groups import group_by, group_of, groups_line
from train.negatives.make import make_negative
from train.negatives.stream import NormalImages, NormalStream
from train.recipe import Recipe
from train.scorers.fit import Embeddings, OfNormals, embed_normals, fit_normals
from train.settings import Settings, TrainSettings
from train.split import LEAST_NORMALS, Split, split


class CategoryData:
    """A category of a cache, its normals, its test images and its pretrained network.

    rows: (n,) of the normals in the cache; normals: their images. Several cells may use it at once.
    """

    def __init__(self, category: CachedCategory, rows: NDArray[np.int64], tests: TestSet, device: torch.device) -> None:
        self.category, self.settings, self.tests, self.device = category, category.settings, tests, device
        self.rows = rows
        self._stream = NormalStream(category, rows)
        self.normals = self.images(np.arange(len(rows)))
        self._parts_by: dict[str | None, NDArray[np.int64]] = {}
        self._fitted: dict[tuple[object, ...], tuple[int, list[OfNormals]]] = {}

    @cached_property
    def paths(self) -> list[str]:
        """Of the normals, as the cache has them."""
        paths = self.category.paths
        return [paths[row] for row in self.rows]

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of the normals' files."""
        digests = self.category.digests
        return [digests[row] for row in self.rows]

    @cached_property
    def plain(self) -> Backbone:
        """The backbone as it is loaded, on the CPU."""
        return load_backbone(self.settings.backbone, self.settings.weights, self.settings.seed)

    @cached_property
    def pretrained(self) -> Backbone:
        """The backbone for inference, on the device."""
        return for_inference(self.plain).to(self.device)

    def images(self, places: NDArray[np.int64]) -> NormalImages:
        """The images of some normals, by their places among them, 0 to n - 1."""
        return NormalImages(self._stream, self.rows[places])

    def stream(self, places: NDArray[np.int64]) -> NormalStream:
        """A stream of some normals."""
        return self._stream.of(self.rows[places])

    def split(self, settings: Settings) -> Split:
        """What an arm does not see of the normals, and its folds."""
        parts = self._parts(settings.group if isinstance(settings, TrainSettings) else None)
        return split(self.paths, parts, settings.held_out, settings.folds)

    def _parts(self, group: str | None) -> NDArray[np.int64]:
        """(n,) which part each normal shows: by its path as `train.groups.group_by` has it, None: by its pixels."""
        if group not in self._parts_by:
            parts = group_of(self.normals, self.digests) if group is None else group_by(self.paths, group)
            if line := groups_line(parts):
                if len(set(parts.tolist())) < LEAST_NORMALS:
                    line += ", but few parts cannot be held out: each image counts as one, and the threshold is a guess"
                    parts = np.arange(len(self.rows))
                print(f"{self.category.name}: {line}", file=sys.stderr, flush=True)
            self._parts_by[group] = parts
        return self._parts_by[group]

    def negatives(self, places: NDArray[np.int64], kind: str, seed: int) -> Iterator[NDArray[np.uint8]]:
        """A negative of each of some normals."""
        for row in self.rows[places]:
            (normal,) = self._stream.read(np.array([row])).normals(self.settings)
            negative = make_negative(kind, normal, np.random.default_rng([seed, int(row)]))
            yield negative.round().astype(np.uint8)

    def of_normals(self, recipe: Recipe, folds: tuple[NDArray[np.int64], ...], seed: int) -> list[OfNormals]:
        """What `fit_all` gives of the pretrained backbone; that of the last seed stays for the next arm."""
        rules = *recipe.fitted_to_normals, len(folds)
        if (kept := self._fitted.get(rules)) is None or kept[0] != seed:
            kept = seed, fit_all(self.pretrained, recipe, self.normals, folds, seed)
            self._fitted[rules] = kept
        return kept[1]


def fit_all(
    backbone: Backbone, recipe: Recipe, normals: NormalImages, folds: tuple[NDArray[np.int64], ...], seed: int
) -> list[OfNormals]:
    """What a recipe fits to all normals, then to all but each fold, by their places."""
    embeddings = embed_normals(backbone, recipe, normals, len(normals.rows), seed)
    nothing = np.zeros(0, np.int64)

    def fit(without: NDArray[np.int64]) -> OfNormals:
        part: Embeddings = embeddings.without(without) if len(without) else embeddings
        return fit_normals(part, recipe, backbone.device, seed)

    each = map if backbone.device.type == "cuda" else CORES.spread
    return list(each(fit, [nothing, *folds]))
