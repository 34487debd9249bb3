"""PatchCore (Roth et al., CVPR 2022, arXiv 2106.08265) as an arm to compare with: same backbone, images and size.

Patch embeddings of two stages, averaged over 3x3 neighbours and stacked at the finer stage's resolution; a greedy
coreset of all of them, chosen on a random projection; the distance to the nearest of it. The image's score is the
largest of its patches' distances, without the paper's re-weighting by the neighbours of the nearest, which the
authors' published code leaves out as well. Nothing is trained. All patches are held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbone import Backbone
from pipeline.settings import PrecomputeSettings
from train.detector import Scores, smooth_maps
from train.features import Images
from train.metrics import threshold_at
from train.network import patch_embedding
from train.scorers import PatchNearest

_IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class PatchCoreSettings:
    """coreset: share of all patches to keep, the paper's 10 %; held_out and false_alarms as in `TrainSettings`."""

    coreset: float = 0.1
    held_out: float = 0.15
    false_alarms: float = 0.01

    def to_attributes(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class PatchCore:
    """Backbone, coreset of the normals' patches, and threshold on the image's score."""

    cache: PrecomputeSettings
    backbone: Backbone
    patches: PatchNearest
    threshold: float

    def score(self, images: Images) -> Scores:
        """Score images (size,size,3) uint8, in bounded batches."""
        largest, maps = [], []
        for batch in _patch_embeddings(self.backbone, images):
            count, width, rows, columns = batch.shape
            distances = self.patches.scores(batch.permute(0, 2, 3, 1).reshape(-1, width)).view(count, rows, columns)
            largest.append(distances.flatten(1).amax(1).double().cpu().numpy())
            maps.append(smooth_maps(distances, self.cache.image_size).cpu().numpy().astype(np.float32))
        return Scores({"patchcore": np.concatenate(largest)}, np.concatenate(maps))

    def decisive(self, scores: Scores) -> NDArray[np.float64]:
        """The scores (N,) that the threshold is for."""
        return scores.image["patchcore"]


def fit_patchcore(
    cache: PrecomputeSettings,
    settings: PatchCoreSettings,
    backbone: Backbone,
    normals: Sequence[NDArray[np.uint8]],
    held_out: Sequence[NDArray[np.uint8]],
    seed: int,
) -> PatchCore:
    """Keep a coreset of the patches of `normals`, and a threshold by `held_out`, the split that all arms share.

    seed: of the random projection and of the coreset's first patch.
    """
    embeddings = _patch_embeddings(backbone, normals)
    patches = torch.cat([batch.permute(0, 2, 3, 1).flatten(0, 2) for batch in embeddings])
    size = max(1, round(settings.coreset * len(patches)))
    fitted = PatchCore(cache, backbone, PatchNearest.fit(patches, size, seed), threshold=0.0)
    unseen = fitted.decisive(fitted.score(held_out))
    return replace(fitted, threshold=threshold_at(unseen, settings.false_alarms))


@torch.inference_mode()
def _patch_embeddings(backbone: Backbone, images: Images) -> Iterator[Tensor]:
    """Patch embeddings (B,E,h,w) of images (size,size,3) uint8, batch by batch, on the backbone's device."""
    remaining = iter(images)
    while batch := list(islice(remaining, _IMAGES_AT_ONCE)):
        pixels = torch.from_numpy(np.stack(batch)).to(backbone.device).permute(0, 3, 1, 2)
        activations = backbone.activations(backbone.normalise(pixels), backbone.spec.patchcore_stages)
        rows, columns = activations[0].shape[2:]
        yield patch_embedding(activations, (rows, columns))
