"""The test images of a category and their masks, as every cell of it is scored on them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import decode_mask, decode_rgb, read_bytes
from pipeline.data.samples import Sample
from pipeline.settings import PrecomputeSettings
from pipeline.threads import CORES

# Bytes of images that stay decoded: about 5,000 images of 256 pixels.
_MEMORY = 2**30


class TestSet:
    """Test images at a cache's image size; they are decoded when they are asked for, and once as far as memory goes.

    samples: N of them, which lie below image_root; labels: (N,) int64, 1 for anomalous. Both stay in their order.
    """

    __test__ = False  # no test of pytest's

    def __init__(
        self, image_root: str, samples: Sequence[Sample], settings: PrecomputeSettings, memory: int = _MEMORY
    ) -> None:
        self.samples = tuple(samples)
        self.labels = np.array([sample.label for sample in samples], np.int64)
        self._root, self._settings = image_root, settings
        self._kept: dict[int, NDArray[np.uint8]] = {}
        # The first ones stay: each cell asks for all of them in the same order, and would find none of the last ones.
        self._most = memory // (3 * settings.image_size**2)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.samples)

    def image(self, i: int) -> NDArray[np.uint8]:
        """(size,size,3) uint8: image i as precompute would decode it; raises ImageError."""
        if i in self._kept:
            return self._kept[i]
        path, settings = self.samples[i].path, self._settings
        image = decode_rgb(read_bytes(self._root, path), settings.image_size, settings.resize, path)
        if len(self._kept) < self._most:
            self._kept[i] = image
        return image

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """(N,size,size): where each image is anomalous, False all over where it has no mask; raises ImageError."""
        return np.stack(list(CORES.spread(self._mask, self.samples)))

    def _mask(self, sample: Sample) -> NDArray[np.bool_]:
        size = self._settings.image_size
        whole = np.zeros((size, size), bool)
        for path in sample.masks:
            whole |= decode_mask(read_bytes(self._root, path), size, self._settings.resize, path)
        return whole
