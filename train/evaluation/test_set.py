"""The test images of a category and their masks, as every cell of it is scored on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import Decoding, decode_rgb, full_name, read_bytes
from pipeline.data.masks import MaskMismatch, Stance, decode_mask, may_stand_otherwise
from pipeline.data.samples import Sample
from pipeline.errors import ImageError
from pipeline.threads import CORES

# Bytes of images that stay decoded: about 5,000 images of 256 pixels.
_MEMORY = 2**30

# What is doubtful about masks that can be read.
UNFIT = "masks of another shape than their image: these images take no part in pixel metrics"
EMPTY = "anomalous images whose mask is empty: they take no part in pixel metrics"
INVERTED = "masks that mark more than half of their image: are they inverted?"
TURNED = "masks without EXIF orientation whose image has one, and whose size fits both ways: do they turn with it?"


@dataclass(frozen=True)
class Looked:
    """What a look at one test image and its masks found.

    digest: SHA-256 of the image file; masks: those of its masks. doubt: which of the doubts above, and the name of the
    file; None where there is none. problem: why one of the files cannot be read, which leaves the others empty.
    """

    digest: str = ""
    masks: tuple[str, ...] = ()
    doubt: tuple[str, str] | None = None
    problem: str = ""


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
        image = self._decoded(read_bytes(self._root, path), path)
        if len(self._kept) < self._most:
            self._kept[i] = image
        return image

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """(N,size,size): where each image is anomalous, nowhere without a mask that fits; raises ImageError."""
        masks = np.zeros((len(self), self._decoding.size, self._decoding.size), bool)
        for mask, found in zip(masks, CORES.spread(self._mask_of, self.samples), strict=True):
            mask[:] = found
        return masks

    def look(self) -> Iterator[Looked]:
        """Read every image and mask once and decode it, in their order; of the pixels nothing is kept."""
        return CORES.spread(self._look, self.samples)

    def _look(self, sample: Sample) -> Looked:
        try:
            data = read_bytes(self._root, sample.path)
            self._decoded(data, sample.path)
            masks = [read_bytes(self._root, path) for path in sample.masks]
            doubt = self._doubt(sample, data, masks)
        except ImageError as error:
            return Looked(problem=str(error))
        return Looked(sha256(data).hexdigest(), tuple(sha256(mask).hexdigest() for mask in masks), doubt)

    def _doubt(self, sample: Sample, data: bytes, masks: Sequence[bytes]) -> tuple[str, str] | None:
        if not masks:
            return None
        try:
            share = self._merged(sample, data, masks).mean()
        except MaskMismatch as error:
            return UNFIT, str(error)
        if share == 0:
            return EMPTY, sample.path
        if share > 1 / 2:
            return INVERTED, sample.path
        stance, most = self._stance(sample, data), self._decoding.most_pixels
        unclear = (
            path
            for path, mask in zip(sample.masks, masks, strict=True)
            if may_stand_otherwise(mask, stance, most, full_name(self._root, path))
        )
        return next(((TURNED, path) for path in unclear), None)

    def _stance(self, sample: Sample, data: bytes) -> Stance:
        return Stance.of(data, self._decoding.most_pixels, full_name(self._root, sample.path))

    def _mask_of(self, sample: Sample) -> NDArray[np.bool_] | bool:
        if not sample.masks:
            return False
        masks = [read_bytes(self._root, path) for path in sample.masks]
        try:
            return self._merged(sample, read_bytes(self._root, sample.path), masks)
        except MaskMismatch:
            return False

    def _merged(self, sample: Sample, data: bytes, masks: Sequence[bytes]) -> NDArray[np.bool_]:
        """(size,size): where any of the masks of an image says that it is anomalous."""
        stance = self._stance(sample, data)
        whole = np.zeros((self._decoding.size, self._decoding.size), bool)
        for path, mask in zip(sample.masks, masks, strict=True):
            whole |= decode_mask(mask, stance, self._decoding, full_name(self._root, path))
        return whole

    def _decoded(self, data: bytes, path: str) -> NDArray[np.uint8]:
        return decode_rgb(data, self._decoding, full_name(self._root, path))
