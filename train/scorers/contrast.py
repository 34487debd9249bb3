"""What sets negatives apart from normals in the pretrained network, gathered while training streams them.

Of image embeddings: second moments of the difference between each negative and its own normal. Of patch embeddings:
second moments of the difference to the nearest reference, of normal patches and of patches that a negative changed.
References come from one half of the normals and moments from the other; else every normal patch would find itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.backbones.load import Backbone
from pipeline.threads import CORES
from train.features.extract import embed
from train.recipe import Recipe
from train.scorers.coreset import greedy_coreset
from train.scorers.discriminant import quadratic_discriminant, whiten
from train.scorers.gaussian import Gaussian
from train.scorers.nearest import nearest
from train.scorers.normals import Normals
from train.scorers.state import on_device

Moments = dict[str, Tensor]


class Contrast:
    """Sums of second moments, all float64 on the backbone's device; `moments` is what a checkpoint keeps."""

    def __init__(self, backbone: Backbone, recipe: Recipe, normals: Normals, seed: int) -> None:
        """normals: those to train on, by `embed_normals`. seed: of the halves and the references."""
        self.backbone = backbone
        self._recipe = recipe
        device = backbone.device
        self._gaussian = on_device(normals.gaussian, device)
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(normals.rows), generator=generator)
        half = len(shuffled) // 2
        self._others = torch.from_numpy(normals.rows)[shuffled[half:]]
        candidates = normals.patches[shuffled[: max(1, half)]].flatten(0, 1)
        chosen = candidates[torch.randperm(len(candidates), generator=generator)[: recipe.way_candidates]].to(device)
        self._references = chosen[
            greedy_coreset(chosen, min(recipe.way_references, len(chosen)), recipe.coreset_width, seed)
        ]
        width, patch_width = len(self._gaussian.mean), candidates.shape[1]
        sizes = {"embeddings": width, "normal_patches": patch_width, "negative_patches": patch_width}
        self.moments: Moments = {}
        for name, size in sizes.items():
            self.moments[name] = torch.zeros(size, size, dtype=torch.float64, device=device)
            self.moments[f"{name}_count"] = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, images: Tensor, changed: Tensor, rows: Tensor) -> Tensor:
        """Add a batch; returns its embeddings (2B,D) in the pretrained network.

        images: (2B,3,H,W) on the 0..255 scale, normals and then their negatives under the same augmentation. changed:
        (B,H,W) bool, the pixels in which the two differ. rows: (B,) of the cache. On a CPU each normal and its negative
        are computed by themselves, spread over the cores, and added in their order.
        """
        count = len(rows)
        at_once = 1 if images.device.type == "cpu" else count
        parts = (torch.arange(count)[i : i + at_once] for i in range(0, count, at_once))
        work = ((images[torch.cat([part, part + count])], changed[part], rows[part]) for part in parts)
        normals, negatives = [], []
        for pooled, moments in CORES.spread(self._moments_of, work) if at_once == 1 else map(self._moments_of, work):
            for name, values in moments.items():
                self.moments[name] += values
            normal, negative = pooled.chunk(2)
            normals.append(normal)
            negatives.append(negative)
        return torch.cat([*normals, *negatives])

    @torch.no_grad()
    def _moments_of(self, pairs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Moments]:
        images, changed, rows = pairs
        pooled, patches = embed(self.backbone, self._recipe, images)
        normal, negative = pooled.double().chunk(2)
        moments = _second_moments("embeddings", (negative - normal) @ self._gaussian.factor)
        grid = patches.shape[2], patches.shape[3]
        share = F.adaptive_avg_pool2d(changed[:, None].float(), grid)[:, 0]
        other = torch.isin(rows, self._others).to(patches.device)
        normal, negative = (part[other].permute(0, 2, 3, 1) for part in patches.chunk(2))
        moments |= _second_moments("normal_patches", self._residuals(normal.flatten(0, 2)))
        changed_patches = negative[share[other] > self._recipe.changed_share]
        return pooled, moments | _second_moments("negative_patches", self._residuals(changed_patches))

    def embedding_discriminant(self) -> Gaussian:
        """The normals' mean, and the factor of the discriminant of embeddings; of normals only if no negative came.

        A negative counts as a normal that was moved: its variance is that of normals plus that of the difference.
        """
        mean, factor = self._gaussian.mean, self._gaussian.factor
        moved = self._mean("embeddings") + torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        learned = quadratic_discriminant(factor, moved, len(mean))
        return Gaussian(mean, learned if learned.shape[1] else factor)

    def patch_projection(self) -> Tensor | None:
        """(E,d) float32 to the patches' discriminant directions; None where negatives differ in no direction."""
        whitening = whiten(self._mean("normal_patches"), self._recipe.ridge)
        learned = quadratic_discriminant(
            whitening, whitening.T @ self._mean("negative_patches") @ whitening, self._recipe.directions
        )
        return learned.float() if learned.shape[1] else None

    def _residuals(self, patches: Tensor) -> Tensor:
        if not len(patches):
            return patches
        return patches - self._references[nearest(self._references, patches)[:, 0]]

    def _mean(self, name: str) -> Tensor:
        return self.moments[name] / self.moments[f"{name}_count"].clamp(min=1)


def _second_moments(name: str, differences: Tensor) -> Moments:
    """The sum of outer products of differences (M,D), and their number M."""
    differences = differences.double()
    return {name: differences.T @ differences, f"{name}_count": torch.tensor(len(differences)).to(differences.device)}
