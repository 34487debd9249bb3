"""Open or create the Zarr group of a cache at a path or URL; a failure is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import zarr
from zarr.errors import GroupNotFoundError

from pipeline.cache.layout import Attributes
from pipeline.errors import UserError
from pipeline.remote import describe_io_error, is_url, need_extra, open_filesystem, options


def open_group(store: str, mode: Literal["r", "r+"]) -> zarr.Group | None:
    """The root group, None where there is none; UserError where it cannot be opened."""
    try:
        return _open(store, mode)
    except (FileNotFoundError, GroupNotFoundError):
        return None


def create_group(store: str, attributes: Attributes) -> zarr.Group:
    """A new root group with its attributes; UserError where it cannot be created."""
    try:
        return _open(store, "w-", attributes)
    except (FileNotFoundError, GroupNotFoundError) as error:
        raise UserError(f"{store} cannot be created ({describe_io_error(error)}): choose another --store") from error


def _open(store: str, mode: Literal["r", "r+", "w-"], attributes: Attributes | None = None) -> zarr.Group:
    remote = _is_remote(store)
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
    except (FileNotFoundError, GroupNotFoundError):
        raise
    except Exception as error:
        # ImportError: fsspec lacks the package for the URL; ValueError: damaged metadata, or no URL that it knows.
        reason = str(error) if isinstance(error, ValueError | ImportError) else describe_io_error(error)
        if reason is None:
            raise
        fix = "check its endpoint and credentials, or choose" if remote else "choose"
        raise UserError(f"{store} cannot be opened as a cache ({reason}): {fix} another --store") from error


def holds_anything(store: str) -> bool:
    """Whether there is any file or object at or below `store`."""
    if _is_remote(store):
        filesystem, base = open_filesystem(store)
        try:
            return bool(filesystem.ls(base, detail=False))
        except FileNotFoundError:
            return False
    local = Path(store.removeprefix("file://"))
    return local.is_dir() and any(local.iterdir())


def _is_remote(store: str) -> bool:
    return is_url(store) and not store.startswith("file://")
