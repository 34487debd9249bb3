"""Stream normals and their patch pairs out of the cache, in shuffled batches, with bounded memory.

The cache is read a chunk at a time. An epoch visits the chunks in shuffled order, mixes the images of a window of 16
chunks, and shows every image once. The order depends on the seed only: whether the chunks fit in memory decides how
often they are read. A category of up to 4 GiB of chunks (about 21,000 images of 256 pixels) is read once and stays in
memory; of a larger one the chunks used last stay, and an epoch reads each chunk about once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from itertools import islice
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.category import CachedCategory
from pipeline.cache.layout import Arrays, locate
from pipeline.settings import PrecomputeSettings

_WINDOW = 16
_MEMORY = 4 * 2**30


@dataclass(frozen=True, eq=False)
class Normal:
    """A normal out of the cache: image (H,W,3) float32 on the 0..255 scale, its pairs (L,P,6), the cache's settings."""

    image: NDArray[np.float32]
    pairs: NDArray[np.int16]
    settings: PrecomputeSettings


@dataclass(frozen=True)
class Batch:
    """Some normals: images (B,H,W,3) uint8, their pairs (B,L,P,6) int16, and their rows (B,) of the cache."""

    images: NDArray[np.uint8]
    pairs: NDArray[np.int16]
    rows: NDArray[np.int64]

    def normals(self, settings: PrecomputeSettings) -> Iterator[Normal]:
        """One at a time; settings: of the cache."""
        for image, pairs in zip(self.images, self.pairs, strict=True):
            yield Normal(image.astype(np.float32), pairs, settings)


def row_order(rows: NDArray[np.int64], seed: int) -> Iterator[int]:
    """The rows epoch after epoch, without end; each epoch holds every row once.

    rows: (n,) ascending rows of the cache. The same (rows, seed) give the same order always.
    """
    chunks = np.split(rows, np.flatnonzero(np.diff(locate(rows)[0])) + 1)
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, epoch])
        shuffled = [chunks[i] for i in rng.permutation(len(chunks))]
        for start in range(0, len(shuffled), _WINDOW):
            window = np.concatenate(shuffled[start : start + _WINDOW])
            yield from window[rng.permutation(len(window))].tolist()
        epoch += 1


class NormalStream:
    """Batches of normals from one category of a cache; several threads may read them."""

    def __init__(self, category: CachedCategory, rows: NDArray[np.int64], memory: int = _MEMORY) -> None:
        """rows: (n,) ascending rows to draw from. memory: bytes of chunks to keep, at least one window of them."""
        self._category = category
        self._image, self._pairs = (category.array(name).shape[1:] for name in ("images", "pairs"))
        self._rows = rows
        self._chunks: OrderedDict[int, Arrays] = OrderedDict()
        self._memory = memory
        self._lock = Lock()

    def batches(self, size: int, seed: int, first: int = 0) -> Iterator[Batch]:
        """Batches without end, from number `first` on; a batch may join the end of an epoch to the next one's start."""
        order = islice(row_order(self._rows, seed), first * size, None)
        while True:
            yield self.read(np.array(list(islice(order, size)), np.int64))

    def read(self, rows: NDArray[np.int64]) -> Batch:
        """The images and pairs of any rows, in their order."""
        images = np.empty((len(rows), *self._image), np.uint8)
        pairs = np.empty((len(rows), *self._pairs), np.int16)
        for i, (number, place) in enumerate(zip(*(part.tolist() for part in locate(rows)), strict=True)):
            # Copied at once: a view would keep its whole chunk in memory until the batch is there.
            chunk = self._chunk(number)
            images[i], pairs[i] = chunk["images"][place], chunk["pairs"][place]
        return Batch(images, pairs, rows)

    def of(self, rows: NDArray[np.int64]) -> NormalStream:
        """A stream of other rows, which shares the chunks that are in memory."""
        other = copy(self)
        other._rows = rows
        return other

    @property
    def settings(self) -> PrecomputeSettings:
        """The settings that the category was computed with."""
        return self._category.settings

    def _chunk(self, number: int) -> Arrays:
        with self._lock:
            if number not in self._chunks:
                self._chunks[number] = self._category.read_chunk(number, ("images", "pairs"))
                size = sum(array.nbytes for array in self._chunks[number].values())
                while len(self._chunks) > max(_WINDOW + 1, self._memory // size):
                    self._chunks.popitem(last=False)
            self._chunks.move_to_end(number)
            return self._chunks[number]


@dataclass(frozen=True, eq=False)
class NormalImages:
    """The images (H,W,3) uint8 of some rows, read from a stream at every iteration."""

    stream: NormalStream
    rows: NDArray[np.int64]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """One at a time."""
        for row in self.rows:
            yield self.stream.read(np.array([row])).images[0]
