"""A cache and its categories: opened, read, and written a shard at a time.

A chunk of `done` is a shard's and is written last: a chunk of images counts only when all of it is on disk. Attributes
are written by the driver only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.cache.group import open_group
from pipeline.cache.layout import CHUNK, DONE, FORMAT, Arrays, Attributes, locate, pending_rows
from pipeline.errors import UserError
from pipeline.setting import split
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
    """One category: its settings, and its arrays (docs/cache.md), which every use reads anew.

    Rows are images. A chunk is `rows_per_chunk` of them; a shard, one or several chunks, is what one task writes.
    """

    name: str
    settings: PrecomputeSettings
    group: zarr.Group

    rows_per_chunk: ClassVar[int] = CHUNK

    def __len__(self) -> int:
        """Rows, those of dropped images among them."""
        return int(self.array("paths").shape[0])

    def rows_of(self, chunk: int) -> range:
        """The rows of a chunk."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self)))

    def array(self, name: str) -> zarr.Array[Any]:
        """One array, not read yet."""
        return cast("zarr.Array[Any]", self.group[name])

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
        """(N,) bool: which rows lie in a done chunk."""
        return np.repeat(self.done, CHUNK)[: len(self)]

    @property
    def usable(self) -> NDArray[np.int64]:
        """The rows, rising, that lie in a done chunk and whose image could be read."""
        return np.flatnonzero(self.valid & self.in_done)

    @property
    def chunks_per_shard(self) -> int:
        """Chunks per shard: the layout that the category was created with stays, however it grows."""
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

        Digests come last but one: a row with a digest is a row whose other arrays are on disk.
        """
        chunks, count = self.chunks_per_shard, len(arrays["valid"])
        first = shard * chunks * CHUNK
        for name in sorted(arrays, key="sha256".__eq__):
            self.array(name)[first : first + count] = arrays[name]
        self.array("done")[shard * chunks : shard * chunks - (-count // CHUNK)] = DONE

    def _read_rows(self, rows: slice, names: Sequence[str]) -> Arrays:
        return {name: np.asarray(self.array(name)[rows]) for name in names}


@dataclass(frozen=True, eq=False)
class Cache:
    """A cache: what it was made of and with, and its categories by name."""

    store: str
    root: zarr.Group

    @property
    def attributes(self) -> Attributes:
        """All root attributes, as they were when the cache was opened or last written to by this object."""
        return dict(self.root.attrs)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.root.attrs["dataset"])

    @property
    def image_root(self) -> str:
        """Where the source images were found: an absolute path or a URL."""
        return str(self.root.attrs["root"])

    @property
    def id(self) -> str:
        """What tells this cache from one that is started again at the same place."""
        return str(self.root.attrs["cache_id"])

    @property
    def complete(self) -> bool:
        """Whether the last run marked it complete."""
        return bool(self.root.attrs.get("complete"))

    @property
    def settings(self) -> PrecomputeSettings:
        """The settings that the cache was made with; a category has its own."""
        return PrecomputeSettings.from_attributes(dict(self.root.attrs["settings"]))  # type: ignore[arg-type]

    def names(self) -> list[str]:
        """The categories whose arrays exist, sorted."""
        return sorted(self._ready())

    def __iter__(self) -> Iterator[str]:
        """The names of the categories, as of a mapping."""
        return iter(self.names())

    def __getitem__(self, name: str) -> CachedCategory:
        """The category of that name; UserError where the cache has none."""
        # Zarr would take "mono/" and "./mono" for paths.
        group = self.root.get(name) if name.strip(".") and "/" not in name else None
        if not isinstance(group, zarr.Group) or not group.attrs.get("ready"):
            held = ", ".join(self.names()) or "none"
            raise UserError(f"{self.store} holds no category {name!r}: it holds {held}")
        return CachedCategory(name, self.settings, group)

    def choose(self, asked: Sequence[str] = ()) -> list[CachedCategory]:
        """The categories asked for, also several in one by commas, or all; UserError for one that the cache lacks."""
        commas = any("," in name for name in asked)
        return [self[name] for name in split(asked, self.names() if commas else ()) or self.names()]

    def pending(self, asked: Sequence[str] = ()) -> Iterator[tuple[str, int, int]]:
        """Category, number and images to compute of every shard to be computed, of the categories asked for or all."""
        for category in self.choose(asked):
            for shard, images in category.pending_shards():
                yield category.name, shard, images

    def update_attributes(self, **attributes: object) -> None:
        """Write root attributes where they differ: a finished cache may lie where this run can only read."""
        if any(self.root.attrs.get(name) != value for name, value in attributes.items()):
            self.root.update_attributes(attributes)

    def refresh_digests(self) -> None:
        """Bring the root's list of its categories' `images_digest` up to date."""
        digests = {name: group.attrs["images_digest"] for name, group in sorted(self._ready().items())}
        self.update_attributes(images_digest=digests)

    def finish(self) -> bool:
        """Set `complete` where every chunk of every category is done; returns it."""
        complete = all(category.complete for category in self.choose())
        self.update_attributes(complete=complete)
        return complete

    def _ready(self) -> dict[str, zarr.Group]:
        return {name: group for name, group in self.root.groups() if group.attrs.get("ready")}


def open_cache(store: str | Path, mode: Literal["r", "r+"] = "r") -> Cache:
    """The cache at a path or URL; raises UserError where there is none or its format is not ours."""
    cache = find_cache(str(store), mode)
    if cache is None:
        raise UserError(f"no cache at {store}: make one with `precompute --store {store}`")
    return cache


def find_cache(store: str, mode: Literal["r", "r+"] = "r") -> Cache | None:
    """The cache at a path or URL, None where there is no Zarr group; UserError where its format is not ours."""
    root = open_group(store, mode)
    found = FORMAT if root is None else root.attrs.get("format")
    if found != FORMAT:
        raise UserError(f"{store} is no cache of format {FORMAT} (found {found}): choose another --store")
    return None if root is None else Cache(store, root)


def default_store() -> str:
    """The only cache below data/cache of the working directory; UserError where there is none or more than one."""
    found = sorted(path.as_posix() for path in Path("data/cache").glob("*.zarr"))
    if not found:
        raise UserError("no cache in data/cache: make one with `precompute`, or give the path of another")
    if len(found) > 1:
        raise UserError(f"several caches in data/cache: give one of {', '.join(found)}")
    return found[0]
