"""Score a category's test images with a detector and measure the scores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets import Sample
from pipeline.images import decode_mask, decode_rgb, read_bytes
from pipeline.settings import PrecomputeSettings
from train.detector import Detector, Scores
from train.metrics import aupro, has_pixel_truth, image_ap, image_auroc, pixel_auroc

_IMAGES_AHEAD = 64


@dataclass(frozen=True)
class Evaluation:
    """Figures in 0..1, None where not defined, and the scores they come from; scorers: image AUROC by name."""

    image_auroc: float | None
    image_ap: float | None
    pixel_auroc: float | None
    aupro: float | None
    scorers: dict[str, float | None]
    scores: Scores
    labels: NDArray[np.int64]


def read_images(root: str, paths: Sequence[str], cache: PrecomputeSettings) -> Iterator[NDArray[np.uint8]]:
    """Images (size,size,3) uint8 as stage 1 would decode them, read ahead in threads; raises ImageError."""

    def read(path: str) -> NDArray[np.uint8]:
        return decode_rgb(read_bytes(root, path), cache.image_size, cache.resize, path)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _IMAGES_AHEAD):
            yield from pool.map(read, paths[start : start + _IMAGES_AHEAD])


def evaluate(detector: Detector, root: str, samples: Sequence[Sample]) -> Evaluation:
    """Score test samples below `root` and measure: image AUROC and AP of every scorer, pixel AUROC and AUPRO.

    Anomalous images without a mask, or with an empty one, take no part in the pixel figures.
    """
    cache = detector.cache
    labels = np.array([sample.label for sample in samples], np.int64)
    scores = detector.score(read_images(root, [sample.path for sample in samples], cache))
    decisive = detector.decisive(scores)
    masks = np.stack([_mask(root, sample, cache) for sample in samples])
    known = has_pixel_truth(labels, masks)
    return Evaluation(
        image_auroc(labels, decisive),
        image_ap(labels, decisive),
        pixel_auroc(masks[known], scores.maps[known]),
        aupro(masks[known], scores.maps[known]),
        {name: image_auroc(labels, values) for name, values in scores.image.items()},
        scores,
        labels,
    )


def _mask(root: str, sample: Sample, cache: PrecomputeSettings) -> NDArray[np.bool_]:
    if sample.mask is None:
        return np.zeros((cache.image_size, cache.image_size), bool)
    return decode_mask(read_bytes(root, sample.mask), cache.image_size, cache.resize, sample.mask)
