"""A cache: its attributes and its categories by name. Attributes are written by the driver only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import zarr

from pipeline.cache.category import CachedCategory
from pipeline.cache.group import open_group
from pipeline.cache.layout import FOLDED, FORMAT, Attributes
from pipeline.errors import UserError
from pipeline.setting import split
from pipeline.settings import PrecomputeSettings


@dataclass(frozen=True, eq=False)
class Cache:
    """A cache: what it was made of and with, and its categories by name."""

    store: str
    group: zarr.Group

    @property
    def attributes(self) -> Attributes:
        """All attributes, as they were when the cache was opened or this object last wrote them."""
        return dict(self.group.attrs)

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.group.attrs["dataset"])

    @property
    def image_root(self) -> str:
        """Where the source images were found: an absolute path or a URL."""
        return str(self.group.attrs["root"])

    @property
    def id(self) -> str:
        """A random name; a cache that is started again at the same place gets another."""
        return str(self.group.attrs["cache_id"])

    @property
    def complete(self) -> bool:
        """Whether the last run marked it complete."""
        return bool(self.group.attrs.get("complete"))

    @property
    def folded(self) -> bool:
        """Whether its network has its batch norms folded; a cache grows with the network that made it."""
        return self.group.attrs.get("network") == FOLDED

    @property
    def settings(self) -> PrecomputeSettings:
        """The settings that the cache was made with; a category has its own."""
        return PrecomputeSettings.from_attributes(dict(self.group.attrs["settings"]))  # type: ignore[arg-type]

    def names(self) -> list[str]:
        """The categories whose arrays exist, sorted."""
        return sorted(self._ready())

    def __iter__(self) -> Iterator[str]:
        """The names of the categories, as of a mapping."""
        return iter(self.names())

    def __getitem__(self, name: str) -> CachedCategory:
        """The category of that name; UserError where the cache has none."""
        # Zarr would take "mono/" and "./mono" for paths.
        group = self.group.get(name) if name.strip(".") and "/" not in name else None
        if not isinstance(group, zarr.Group) or not group.attrs.get("ready"):
            raise self._lacks(name)
        return CachedCategory(name, self.settings, group, self.folded)

    def choose(self, asked: Sequence[str] = ()) -> list[CachedCategory]:
        """The categories asked for (commas separate several), or all; UserError for one that the cache lacks."""
        names = self.names()
        chosen = split(asked, names) or names
        for name in chosen:
            # Before it becomes a path: not every text can be one.
            if name not in names:
                raise self._lacks(name)
        return [self[name] for name in chosen]

    def pending(self, names: Sequence[str] = ()) -> Iterator[tuple[str, int, int]]:
        """Category, number and images to compute of every shard to be computed, of the categories asked for or all."""
        for name in names or self.names():
            for shard, images in self[name].pending_shards():
                yield name, shard, images

    def update_attributes(self, **attributes: object) -> None:
        """Write attributes that differ; a finished cache may be on a store that this run can only read."""
        if any(self.group.attrs.get(name) != value for name, value in attributes.items()):
            self.group.update_attributes(attributes)

    def refresh_digests(self) -> None:
        """Update the attribute `images_digest`, which lists that of every category."""
        digests = {name: group.attrs["images_digest"] for name, group in sorted(self._ready().items())}
        self.update_attributes(images_digest=digests)

    def finish(self) -> bool:
        """Set `complete` where every chunk of every category is done; returns it."""
        complete = all(category.complete for category in self.choose())
        self.update_attributes(complete=complete)
        return complete

    def _lacks(self, name: str) -> UserError:
        return UserError(f"{self.store} holds no category {name!r}: it holds {', '.join(self.names()) or 'none'}")

    def _ready(self) -> dict[str, zarr.Group]:
        return {name: group for name, group in self.group.groups() if group.attrs.get("ready")}


def open_cache(store: str | Path, mode: Literal["r", "r+"] = "r") -> Cache:
    """The cache at a path or URL; raises UserError where there is none or its format is not ours."""
    cache = find_cache(str(store), mode)
    if cache is None:
        raise UserError(f"no cache at {store}: make one with `precompute --store {store}`")
    return cache


def find_cache(store: str, mode: Literal["r", "r+"] = "r") -> Cache | None:
    """The cache at a path or URL, None where there is no Zarr group; UserError where its format is not ours."""
    group = open_group(store, mode)
    found = FORMAT if group is None else group.attrs.get("format")
    if found != FORMAT:
        raise UserError(f"{store} is no cache of format {FORMAT} (found {found}): choose another --store")
    return None if group is None else Cache(store, group)


def default_store() -> str:
    """The only cache below data/cache of the working directory; UserError where there is none or more than one."""
    found = sorted(path.as_posix() for path in Path("data/cache").glob("*.zarr"))
    if not found:
        raise UserError("no cache in data/cache: make one with `precompute`, or give the path of another")
    if len(found) > 1:
        raise UserError(f"several caches in data/cache: give one of {', '.join(found)}")
    return found[0]
