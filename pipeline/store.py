"""The cache: a Zarr v3 store with one group a category; its layout, and how it is opened, read and written.

A block is 64 images and one chunk of every array. A write unit is what one task writes, an object of every array: one
block, or in a large category a shard of several, so that two tasks never write to one object. A chunk of `done` is a
write unit's and is written last: a block counts only when all of it is on disk. Attributes are written by the driver
alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import GroupNotFoundError

from pipeline.errors import UserError
from pipeline.remote import failure, is_url, need_extra, options
from pipeline.settings import PrecomputeSettings

FORMAT = 1
BLOCK = 64
# Values of `done` beside 0. A grown block was done before rows of it came or changed: those with a digest are whole.
DONE, GROWN = 1, 2

Arrays = dict[str, NDArray[Any]]
Attributes = dict[str, Any]


def layout(images: int, settings: PrecomputeSettings) -> dict[str, tuple[tuple[int, ...], str, tuple[str, ...]]]:
    """Shape, dtype and dimension names of every array that has a row an image; `settings.stages` must be chosen."""
    size, cells, stages = settings.image_size, settings.map_size, len(settings.stages)
    maps = (images, stages, cells, cells), "uint8", ("image", "stage", "map_y", "map_x")
    return {
        "images": ((images, size, size, 3), "uint8", ("image", "y", "x", "channel")),
        "paths": ((images,), "str", ("image",)),
        "sha256": ((images,), "str", ("image",)),
        "valid": ((images,), "uint8", ("image",)),
        "saliency": maps,
        "target_class": ((images,), "int32", ("image",)),
        "clusters": maps,
        "centroids": ((images, stages, settings.clusters), "float32", ("image", "stage", "cluster")),
        "pairs": ((images, stages, settings.pairs, 6), "int16", ("image", "stage", "pair", "box")),
        "relaxed": ((images, stages, settings.pairs), "uint8", ("image", "stage", "pair")),
    }


def default_store() -> str:
    """The only cache below data/cache of the working directory; UserError where there is none or more than one."""
    found = sorted(path.as_posix() for path in Path("data/cache").glob("*.zarr"))
    if not found:
        raise UserError("no cache in data/cache: make one with `precompute`, or give the path of another")
    if len(found) > 1:
        raise UserError(f"several caches in data/cache: give one of {', '.join(found)}")
    return found[0]


def cache_exists(store: str) -> bool:
    """Whether a Zarr group lies at `store`."""
    return open_group(store, "r") is not None


def open_cache(store: str, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """The root group of an existing cache; raises UserError where there is none or its format is not ours."""
    root = open_group(store, mode)
    if root is None:
        raise UserError(f"no cache at {store}: make one with `precompute --store {store}`")
    found = root.attrs.get("format")
    if found != FORMAT:
        raise UserError(f"{store} is no cache of format {FORMAT} (found {found}): choose another --store")
    return root


def cache_settings(root: zarr.Group) -> PrecomputeSettings:
    """The settings that a cache was made with."""
    return PrecomputeSettings.from_attributes(dict(root.attrs["settings"]))  # type: ignore[arg-type]


def category_names(root: zarr.Group) -> list[str]:
    """The categories whose arrays exist, sorted."""
    return sorted(name for name, group in root.groups() if group.attrs.get("ready"))


def choose_categories(root: zarr.Group, asked: Sequence[str], store: str) -> list[str]:
    """The categories asked for, or all; one that the cache lacks raises UserError."""
    names = category_names(root)
    for name in asked:
        if name not in names:
            raise UserError(f"{store} holds no category {name!r}: it holds {', '.join(names) or 'none'}")
    return list(asked) or names


def done_blocks(category: zarr.Group) -> NDArray[np.bool_]:
    """(blocks,) bool: which blocks are complete."""
    done: NDArray[np.bool_] = np.asarray(array(category, "done")[:]) == DONE
    return done


def unit_blocks(category: zarr.Group) -> int:
    """Blocks a write unit of this category: the layout that it was created with stays, however it grows."""
    return int(array(category, "done").chunks[0])


def unit_states(category: zarr.Group, unit: int) -> NDArray[np.uint8]:
    """(blocks,) uint8 of one write unit: 0 for a block to be computed, DONE, or GROWN."""
    blocks = unit_blocks(category)
    states: NDArray[np.uint8] = np.asarray(array(category, "done")[unit * blocks : (unit + 1) * blocks])
    return states


def write_unit(category: zarr.Group, unit: int, arrays: Arrays) -> None:
    """Write every array of one write unit, all its rows, and `done` after all of them.

    Digests come last but one: a row with a digest is a row whose other arrays are on disk.
    """
    blocks, count = unit_blocks(category), len(arrays["valid"])
    first = unit * blocks * BLOCK
    for name in sorted(arrays, key="sha256".__eq__):
        array(category, name)[first : first + count] = arrays[name]
    array(category, "done")[unit * blocks : unit * blocks - (-count // BLOCK)] = DONE


def read_unit(category: zarr.Group, unit: int, names: Sequence[str]) -> Arrays:
    """The named arrays' rows of one write unit."""
    rows = unit_blocks(category) * BLOCK
    return _read_rows(category, slice(unit * rows, (unit + 1) * rows), names)


def read_block(category: zarr.Group, block: int, names: Sequence[str]) -> Arrays:
    """The named arrays' rows of one block."""
    return _read_rows(category, slice(block * BLOCK, (block + 1) * BLOCK), names)


def _read_rows(category: zarr.Group, rows: slice, names: Sequence[str]) -> Arrays:
    return {name: np.asarray(array(category, name)[rows]) for name in names}


def read_all(category: zarr.Group, name: str) -> NDArray[Any]:
    """One whole array of a category."""
    return np.asarray(array(category, name)[:])


def iterate_blocks(category: zarr.Group) -> Iterator[int]:
    """The numbers of the blocks that are done."""
    return (int(block) for block in np.flatnonzero(done_blocks(category)))


def open_group(store: str, mode: Literal["r", "r+", "w-"], attributes: Attributes | None = None) -> zarr.Group | None:
    """The root group, None where there is none; mode "w-" creates it. Raises UserError for what cannot be opened."""
    remote = is_url(store) and not store.startswith("file://")
    if remote:
        need_extra(store)
    try:
        return zarr.open_group(
            store.removeprefix("file://"),
            mode=mode,
            # Else zarr looks for files of the other formats first.
            zarr_format=3,
            use_consolidated=False,
            attributes=attributes,
            storage_options=options(store) if remote else None,
        )
    except (FileNotFoundError, GroupNotFoundError) as error:
        if mode != "w-":
            return None
        raise UserError(f"{store} cannot be created ({failure(error)}): choose another --store") from error
    except Exception as error:
        # ImportError: fsspec lacks the package for the URL; ValueError: damaged metadata, or no URL that it knows.
        reason = str(error) if isinstance(error, ValueError | ImportError) else failure(error)
        if reason is None:
            raise
        mend = "check its endpoint and credentials, or choose" if remote else "choose"
        raise UserError(f"{store} cannot be opened as a cache ({reason}): {mend} another --store") from error


def open_category(root: zarr.Group, name: str) -> zarr.Group:
    """The group of one category."""
    return cast(zarr.Group, root[name])


def array(category: zarr.Group, name: str) -> zarr.Array[Any]:
    """One array of a category."""
    return cast("zarr.Array[Any]", category[name])
