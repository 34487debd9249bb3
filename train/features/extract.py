"""Embeddings of images in a backbone, a bounded batch at a time: one per image, and one per patch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, cat

from pipeline.backbones.load import Backbone
from pipeline.threads import CORES
from train.features.grid import on_grid
from train.recipe import Recipe

_IMAGES_AT_ONCE = 16

Images = Iterable[NDArray[np.uint8]]
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_images(
    function: Callable[[Tensor], Result],
    items: Iterable[Item],
    load: Callable[[Item], NDArray[np.uint8]],
    device: torch.device,
) -> Iterator[Result]:
    """``function(batch)`` of the images (size,size,3) uint8 that `load` makes of the items, in their order.

    On a CPU a batch is one image, and images are spread over the cores; on a GPU it is 16. The function runs without
    gradients, and gets (B,3,size,size) uint8 on the device.
    """

    @torch.inference_mode()
    def of_batch(images: Sequence[NDArray[np.uint8]]) -> Result:
        return function(torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2))

    if device.type == "cpu":
        yield from CORES.spread(lambda item: of_batch([load(item)]), items)
        return
    loaded = CORES.spread(load, items)
    while batch := list(islice(loaded, _IMAGES_AT_ONCE)):
        yield of_batch(batch)


def as_it_is(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What `map_images` loads of images that are loaded."""
    return image


# What a recipe's pooling makes of activations (B,C,h,w): (B,C) or (B,4C).
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda a: a.mean((2, 3)),
    "deviation": lambda a: a.std((2, 3), correction=0),
    "quadrants": lambda a: F.adaptive_avg_pool2d(a, 2).flatten(1),
}


def pooled_embedding(activations: list[Tensor], pooling: Sequence[str]) -> Tensor:
    """(B,D) float32: every stage's activations (B,C,h,w) pooled in each of these ways, one behind the other."""
    return cat([POOLINGS[name](a.float()) for a in activations for name in pooling], 1)


def patch_embedding(activations: list[Tensor], grid: tuple[int, int], neighbourhood: int) -> Tensor:
    """(B,D,h,w) float32 on the grid (h,w): the stages averaged over so many cells a side (odd), resized and stacked.

    The neighbourhood average and the resizing are those of PatchCore (Roth et al., arXiv 2106.08265, eq. 2-4); a stage
    finer than the grid is averaged down to it.
    """
    n = neighbourhood
    averaged = [F.avg_pool2d(a.float(), n, stride=1, padding=n // 2, count_include_pad=False) for a in activations]
    return cat([on_grid(a, grid) for a in averaged], 1)


def image_embedding(backbone: Backbone, recipe: Recipe, images: Tensor) -> Tensor:
    """(B,D) float32 of images (B,3,H,W) on the 0..255 scale, with gradients; for patches as well, see `embed`."""
    return pooled_embedding(backbone.activations(backbone.normalise(images), recipe.embedding_stages), recipe.pooling)


@dataclass(frozen=True, eq=False)
class Embedded:
    """What one forward pass of a backbone says of images.

    pooled (B,D) and patches (B,E,h,w), both float32; D is 0 where the recipe names no stage of an embedding. grid: that
    of the recipe's cells. shared: the activation of the stage asked for, else None.
    """

    pooled: Tensor
    patches: Tensor
    grid: tuple[int, int]
    shared: Tensor | None


def embed(backbone: Backbone, recipe: Recipe, images: Tensor, shared: str | None = None) -> Embedded:
    """Embed images (B,3,H,W) on the 0..255 scale; shared: a stage whose activation is kept."""
    asked = {*recipe.embedding_stages, *recipe.patch_stages, recipe.cell_grid, shared}
    wanted = [stage for stage in backbone.stage_names if stage in asked]
    by_stage = dict(zip(wanted, backbone.activations(backbone.normalise(images), wanted), strict=True))
    pooled = [by_stage[stage] for stage in recipe.embedding_stages]
    grids = ((by_stage[stage].shape[2], by_stage[stage].shape[3]) for stage in (recipe.patch_grid, recipe.cell_grid))
    patch_grid, cell_grid = grids
    patches = patch_embedding([by_stage[stage] for stage in recipe.patch_stages], patch_grid, recipe.neighbourhood)
    embedding = pooled_embedding(pooled, recipe.pooling) if pooled else images.new_empty(images.shape[0], 0).float()
    return Embedded(embedding, patches, cell_grid, by_stage[shared] if shared else None)
