"""The test images of a category and their masks, as every cell of it is scored on them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import Decoding, decode_rgb, read_bytes
from pipeline.data.masks import MaskMismatch, Stance, decode_mask
from pipeline.data.samples import Sample
from pipeline.threads import CORES

# Bytes of images that stay decoded: about 5,000 images of 256 pixels.
_MEMORY = 2**30

# What is doubtful about a mask that can be read.
UNFIT = "masks of another shape than their image: these images take no part in pixel metrics"
EMPTY = "anomalous images whose mask is empty: they take no part in pixel metrics"
INVERTED = "masks that mark more than half of their image: are they inverted?"


@dataclass(frozen=True, eq=False)
class Truth:
    """Where N images are anomalous: masks (N,size,size) bool, False all over where an image has none.

    doubts: the masks, or images, of which something is doubtful, by what it is.
    """

    masks: NDArray[np.bool_]
    doubts: dict[str, list[str]]


class TestSet:
    """Test images at a cache's image size; they are decoded when they are asked for, and once as far as memory goes.

    samples: N of them, which lie below image_root; labels: (N,) int64, 1 for anomalous. Both stay in their order.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, image_root: str, samples: Sequence[Sample], decoding: Decoding, memory: int = _MEMORY) -> None:
        self.samples = tuple(samples)
        self.labels = np.array([sample.label for sample in samples], np.int64)
        self._root, self._decoding = image_root, decoding
        self._kept: dict[int, NDArray[np.uint8]] = {}
        # The first ones stay: each cell asks for all of them in the same order, and would find none of the last ones.
        self._most = memory // (3 * decoding.size**2)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.samples)

    def image(self, i: int) -> NDArray[np.uint8]:
        """(size,size,3) uint8: image i as precompute would decode it; raises ImageError."""
        if i in self._kept:
            return self._kept[i]
        path = self.samples[i].path
        image = decode_rgb(read_bytes(self._root, path), self._decoding, path)
        if len(self._kept) < self._most:
            self._kept[i] = image
        return image

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of each image file; raises ImageError."""
        return list(CORES.spread(self._digest, self.samples))

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(N,size,size): where each image is anomalous; raises ImageError."""
        return self.truth.masks

    @cached_property
    def truth(self) -> Truth:
        """Where each image is anomalous, and what is doubtful about it; raises ImageError."""
        masks = np.zeros((len(self), self._decoding.size, self._decoding.size), bool)
        doubts: defaultdict[str, list[str]] = defaultdict(list)
        for mask, sample, found in zip(masks, self.samples, CORES.spread(self._mask, self.samples), strict=True):
            if isinstance(found, MaskMismatch):
                doubts[UNFIT].append(str(found))
                continue
            mask[:] = found
            if sample.masks and not found.any():
                doubts[EMPTY].append(sample.path)
            elif sample.masks and found.mean() > 1 / 2:
                doubts[INVERTED].append(sample.path)
        return Truth(masks, dict(doubts))

    def _digest(self, sample: Sample) -> str:
        return hashlib.sha256(read_bytes(self._root, sample.path)).hexdigest()

    def _mask(self, sample: Sample) -> NDArray[np.bool_] | MaskMismatch:
        whole = np.zeros((self._decoding.size, self._decoding.size), bool)
        if not sample.masks:
            return whole
        stance = Stance.of(read_bytes(self._root, sample.path), self._decoding.most_pixels, sample.path)
        try:
            for path in sample.masks:
                whole |= decode_mask(read_bytes(self._root, path), stance, self._decoding, path)
        except MaskMismatch as error:
            return error
        return whole
