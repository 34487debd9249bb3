"""What a network says of images, a bounded batch at a time and without gradients: embeddings and the head's odds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbone import Backbone
from train.network import CutSwapNetwork, embed, log_odds

_IMAGES_AT_ONCE = 16

Images = Iterable[NDArray[np.uint8]]
OfPatches = TypeVar("OfPatches")


@dataclass(frozen=True)
class Features(Generic[OfPatches]):
    """Of N images: pooled embeddings (N,D) float32 of the backbone before and after training, the head's log-odds

    of a negative (N,) float64, empty without a head, and what `of_patches` made of each batch's patch embeddings.
    """

    pretrained: NDArray[np.float32]
    trained: NDArray[np.float32]
    negative: NDArray[np.float64]
    of_patches: list[OfPatches]


@torch.inference_mode()
def extract(
    pretrained: Backbone,
    network: CutSwapNetwork | None,
    images: Images,
    of_patches: Callable[[Tensor], OfPatches],
) -> Features[OfPatches]:
    """Features of images (size,size,3) uint8.

    network: None where nothing was trained; then, and where its backbone is frozen, the trained embeddings are the
    pretrained ones. of_patches: gets the pretrained patch embeddings (B,E,h,w) of each batch.
    """
    before, after, odds, patches = [], [], [], []
    for batch in _batches(images, pretrained.device):
        pooled, patch_embeddings = embed(pretrained, batch)
        patches.append(of_patches(patch_embeddings))
        before.append(pooled.cpu())
        if network is not None:
            if not network.frozen:
                pooled = network.embedding(batch)
            odds.append(log_odds(network.classify(pooled).double()).cpu())
        after.append(pooled.cpu())
    negative = torch.cat(odds).numpy() if odds else np.empty(0)
    return Features(torch.cat(before).numpy(), torch.cat(after).numpy(), negative, patches)


def _batches(images: Images, device: torch.device) -> Iterator[Tensor]:
    remaining = iter(images)
    while waiting := list(islice(remaining, _IMAGES_AT_ONCE)):
        yield torch.from_numpy(np.stack(waiting)).to(device).permute(0, 3, 1, 2)
