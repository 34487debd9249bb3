from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.backbones.load import Backbone, load_backbone
from pipeline.data.images import decode_rgb
from train.features.extract import embed
from train.recipe import recipe_of
from train.scorers.contrast import Contrast
from train.scorers.normals import Normals, embed_normals
from train.settings import TrainSettings

NAME, SIZE = "efficientnet_lite0", 64
RECIPE = recipe_of(NAME, TrainSettings())


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(NAME)


@pytest.fixture(scope="module")
def normals(elpv: dict[str, tuple[list[Path], list[Path]]], backbone: Backbone) -> Normals:
    """Twelve cells in the rows 10, 12, .. of a cache."""
    images = [decode_rgb(file.read_bytes(), SIZE, "stretch", file.name) for file in elpv["mono"][0][:12]]
    return embed_normals(backbone, RECIPE, images, np.arange(10, 34, 2), seed=0)


def batch(normals: Normals, chosen: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Images, changed pixels and rows of normals and of negatives with a black square of 32 x 32 pixels."""
    images = torch.from_numpy(np.stack([normals.images[i] for i in chosen])).permute(0, 3, 1, 2).float()
    changed = torch.zeros(len(chosen), SIZE, SIZE, dtype=torch.bool)
    changed[:, 16:48, 16:48] = True
    negatives = images.masked_fill(changed[:, None], 0.0)
    return torch.cat([images, negatives]), changed, torch.from_numpy(normals.rows[chosen])


def test_update_returns_the_embeddings(normals: Normals, backbone: Backbone) -> None:
    images, changed, rows = batch(normals, [0, 3])
    pooled = Contrast(backbone, RECIPE, normals, 0).update(images, changed, rows)
    with torch.no_grad():
        torch.testing.assert_close(pooled, embed(backbone, RECIPE, images)[0])


def test_the_moments_add_up_over_batches(normals: Normals, backbone: Backbone) -> None:
    at_once, in_parts = (Contrast(backbone, RECIPE, normals, 0) for _ in range(2))
    at_once.update(*batch(normals, list(range(12))))
    for part in (range(5), range(5, 12)):
        in_parts.update(*batch(normals, list(part)))
    for name, values in at_once.moments.items():
        torch.testing.assert_close(in_parts.moments[name], values, rtol=0, atol=1e-4 * float(values.max()))


def test_patches_are_counted_of_the_half_without_references_and_where_they_changed(
    normals: Normals, backbone: Backbone
) -> None:
    contrast = Contrast(backbone, RECIPE, normals, 0)
    contrast.update(*batch(normals, list(range(12))))
    counts = {name: int(values) for name, values in contrast.moments.items() if name.endswith("_count")}
    # Half of 12 normals, of 8 x 8 cells; the square covers 4 x 4 of them.
    assert counts == {"embeddings_count": 12, "normal_patches_count": 6 * 64, "negative_patches_count": 6 * 16}


def test_negatives_that_change_nothing_teach_nothing(normals: Normals, backbone: Backbone) -> None:
    contrast = Contrast(backbone, RECIPE, normals, 0)
    assert contrast.patch_projection() is None
    images, changed, rows = batch(normals, list(range(12)))
    contrast.update(torch.cat([images[:12], images[:12]]), torch.zeros_like(changed), rows)
    assert contrast.patch_projection() is None
    torch.testing.assert_close(contrast.embedding_discriminant().factor, normals.gaussian.factor)


def test_what_was_learned_tells_unseen_negatives_better_than_any_patch_distance(
    normals: Normals, backbone: Backbone
) -> None:
    contrast = Contrast(backbone, RECIPE, normals, 0)
    contrast.update(*batch(normals, list(range(8))))
    projection = contrast.patch_projection()
    assert projection is not None
    images, changed, _ = batch(normals, [8, 9, 10, 11])
    with torch.no_grad():
        _, patches = embed(backbone, RECIPE, images)
    references = normals.patches[:8].flatten(0, 1)

    def contrast_of(transform: Tensor) -> float:
        flat = patches.permute(0, 2, 3, 1) @ transform
        distance = torch.cdist(flat.flatten(0, 2), references @ transform).amin(1).view(8, 8, 8)
        inside = changed[:, ::8, ::8]
        return float(distance[4:][inside].mean() / distance[:4].mean())

    assert contrast_of(projection) > 1.1 * contrast_of(torch.eye(patches.shape[1]))


def test_the_same_seed_gives_the_same_contrast(normals: Normals, backbone: Backbone) -> None:
    mine, yours, other = (Contrast(backbone, RECIPE, normals, seed) for seed in (0, 0, 1))
    for contrast in (mine, yours, other):
        contrast.update(*batch(normals, list(range(12))))
    assert all(torch.equal(values, yours.moments[name]) for name, values in mine.moments.items())
    assert not torch.equal(mine.moments["normal_patches"], other.moments["normal_patches"])
