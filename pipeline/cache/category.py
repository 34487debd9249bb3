"""One category of a cache: read by rows, chunks and shards, and written a shard at a time.

A chunk of `done` is a shard's and is written last: a chunk of images counts only when all of it is on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.cache.layout import CHUNK, DONE, STAMPS, Arrays, create_stamps, locate, pending_rows
from pipeline.data.images import Decoding
from pipeline.data.levels import Levels
from pipeline.data.pixels import MOST_PIXELS
from pipeline.errors import RunError
from pipeline.settings import PrecomputeSettings


@dataclass(frozen=True, eq=False)
class PendingRows:
    """What is to be computed of a shard.

    rows: (n,) counted from the shard's first; paths: their source files; of: how many rows the shard has; done: whether
    every chunk of it is done. A shard without rows to compute may still have to be marked so.
    """

    rows: NDArray[np.int64]
    paths: tuple[str, ...]
    of: int
    done: bool


@dataclass(frozen=True, eq=False)
class CachedCategory:
    """One category: its settings, and its arrays (docs/cache.md), which are read again at every use.

    folded: whether its network is that for inference (`pipeline.backbones.inference`); caches of earlier versions have
    the plain one. Rows are images. A chunk is `rows_per_chunk` of them; a shard, one or several chunks, is what one
    task writes.
    """

    name: str
    settings: PrecomputeSettings
    group: zarr.Group
    folded: bool

    rows_per_chunk: ClassVar[int] = CHUNK

    @property
    def levels(self) -> Levels | None:
        """What is white in its images of more than 8 bits; None in a cache of an earlier version."""
        stored = cast("dict[str, Any] | None", self.group.attrs.get("levels"))
        return None if stored is None else Levels.from_attributes(stored)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of some normals' files when it was created; none in a cache of an earlier version."""
        stored = cast("list[tuple[int, int]]", self.group.attrs.get("sizes", []))
        return [(width, height) for width, height in stored]

    def decoding(self, most_pixels: int = MOST_PIXELS) -> Decoding:
        """How its images were decoded, and others are to be."""
        return Decoding(self.settings.image_size, self.settings.resize, self.levels, most_pixels)

    def __len__(self) -> int:
        """Number of rows, including those of dropped images."""
        return int(self.array("paths").shape[0])

    def rows_of(self, chunk: int) -> range:
        """The rows of a chunk."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self)))

    def array(self, name: str) -> zarr.Array[Any]:
        """One array, not read yet."""
        try:
            return cast("zarr.Array[Any]", self.group[name])
        except KeyError as error:
            place = f"{self.group.store_path}/{name}"
            raise RunError(f"{place} is gone, deleted since the cache was opened: run `precompute` again") from error

    def read(self, name: str) -> NDArray[Any]:
        """One whole array."""
        return np.asarray(self.array(name)[:])

    @property
    def paths(self) -> list[str]:
        """The source file of each row, relative to the cache's image root; "" for an image that was dropped."""
        return [str(path) for path in self.read("paths")]

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each row's source file; "" where none was read."""
        return [str(digest) for digest in self.read("sha256")]

    @property
    def stamps(self) -> list[str] | None:
        """What `pipeline.data.content.stamps` said of each row's source file when it was last looked at.

        None in a cache of an earlier version.
        """
        return [str(stamp) for stamp in self.read(STAMPS)] if STAMPS in self.group else None

    def write_stamps(self, stamps: Sequence[str]) -> None:
        """Write those of every row; the array is made where an earlier version left it out."""
        if STAMPS not in self.group:
            create_stamps(self.group, len(stamps), self.chunks_per_shard)
        known, now = self.read(STAMPS), np.array(stamps, dtype=object)
        if len(changed := np.flatnonzero(known != now)):
            # Only the shards that it concerns: new images are at the end.
            part = slice(int(changed[0]), int(changed[-1]) + 1)
            self.array(STAMPS)[part] = now[part]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(N,) bool: whose image could be read."""
        return self.read("valid").astype(bool)

    @property
    def done(self) -> NDArray[np.bool_]:
        """(chunks,) bool: which chunks are complete."""
        done: NDArray[np.bool_] = self.read("done") == DONE
        return done

    @property
    def complete(self) -> bool:
        """Whether every chunk is done."""
        return bool(self.done.all())

    @property
    def in_done(self) -> NDArray[np.bool_]:
        """(N,) bool: which rows are in a done chunk."""
        return np.repeat(self.done, CHUNK)[: len(self)]

    @property
    def usable(self) -> NDArray[np.int64]:
        """The rows, rising, that are in a done chunk and whose image could be read."""
        return np.flatnonzero(self.valid & self.in_done)

    @property
    def chunks_per_shard(self) -> int:
        """Chunks per shard; the number is chosen when the category is created and never changes."""
        return int(self.array("done").chunks[0])

    def done_chunks(self) -> list[int]:
        """The numbers of the chunks that are done."""
        return [int(chunk) for chunk in np.flatnonzero(self.done)]

    def pending_shards(self) -> list[tuple[int, int]]:
        """Number, and images to compute, of every shard with a chunk that is not done."""
        states, chunks = self.read("done"), self.chunks_per_shard
        if (states == DONE).all():
            return []
        rows = pending_rows(states, self.read("paths"), self.read("sha256"))
        images = np.bincount(locate(rows)[0] // chunks, minlength=-(-len(states) // chunks))
        return [(int(shard), int(images[shard])) for shard in np.unique(np.flatnonzero(states != DONE) // chunks)]

    def pending_rows(self, shard: int) -> PendingRows:
        """What is to be computed of a shard."""
        done = self.array("done")
        chunks = done.chunks[0]
        states = np.asarray(done[shard * chunks : (shard + 1) * chunks])
        listed = self.read_shard(shard, ("paths", "sha256"))
        rows = pending_rows(states, listed["paths"], listed["sha256"])
        paths = tuple(str(path) for path in listed["paths"][rows])
        return PendingRows(rows, paths, len(listed["paths"]), bool((states == DONE).all()))

    def read_chunk(self, chunk: int, names: Sequence[str]) -> Arrays:
        """The named arrays' rows of one chunk."""
        return self._read_rows(slice(chunk * CHUNK, (chunk + 1) * CHUNK), names)

    def read_shard(self, shard: int, names: Sequence[str]) -> Arrays:
        """The named arrays' rows of one shard."""
        rows = self.chunks_per_shard * CHUNK
        return self._read_rows(slice(shard * rows, (shard + 1) * rows), names)

    def write_shard(self, shard: int, arrays: Arrays) -> None:
        """Write every array of one shard, all its rows, and `done` after all of them.

        Digests are written just before `done`: the other arrays of a row with a digest are on disk.
        """
        chunks, count = self.chunks_per_shard, len(arrays["valid"])
        first = shard * chunks * CHUNK
        for name in sorted(arrays, key="sha256".__eq__):
            self.array(name)[first : first + count] = arrays[name]
        self.array("done")[shard * chunks : shard * chunks - (-count // CHUNK)] = DONE

    def _read_rows(self, rows: slice, names: Sequence[str]) -> Arrays:
        return {name: np.asarray(self.array(name)[rows]) for name in names}
