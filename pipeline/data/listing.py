"""The files below an image root, a local folder or an fsspec URL (``s3://bucket/x``): listed once, read by file.

All other modules use POSIX paths relative to the image root, so that a data set has the same paths wherever it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from PIL import Image

from pipeline.errors import RunError, UserError
from pipeline.remote import describe_io_error, is_url, open_filesystem

# Pillow recognises these formats but has no decoder for them.
_STUBS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})


@dataclass(frozen=True)
class Listing:
    """The image files and the folders below an image root, as POSIX paths relative to it.

    `files` is sorted by code point. Only a local root lists folders without files: object
    stores have none.
    """

    files: tuple[str, ...]
    folders: frozenset[str]


def absolute(image_root: str) -> str:
    """`image_root` as an absolute local path, ``~`` expanded; a URL as it is."""
    return image_root if is_url(image_root) else str(Path(image_root).expanduser().absolute())


def last_part(image_root: str) -> str:
    """Name of the root folder itself: the last part of its path, or "root" where it has none."""
    local = image_root.rstrip("/").rpartition("://")[2] if is_url(image_root) else Path(image_root).resolve().as_posix()
    return PurePosixPath(local).name or "root"


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes (lower case, with the dot) of the formats that the installed Pillow decodes."""
    suffixes = Image.registered_extensions().items()
    return frozenset(s for s, kind in suffixes if kind in Image.OPEN and kind not in _STUBS)


def list_images(image_root: str) -> Listing:
    """All image files below `image_root`, by suffix in any case; hidden files and folders are left out.

    No file is opened. Links to folders are followed, but never into a folder that holds them.

    Raises `UserError` where `image_root` is missing, is no folder, or cannot be read.
    """
    try:
        paths, folders = _list_remote(image_root) if is_url(image_root) else _list_local(image_root)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{image_root}: no such folder; data/README.md says where each data set is from") from None
    except Exception as error:
        # ValueError: a URL without a bucket.
        reason = str(error) if isinstance(error, ValueError) else describe_io_error(error)
        if reason is None:
            raise
        raise UserError(f"{image_root}: cannot be listed ({getattr(error, 'strerror', None) or reason})") from error
    suffixes = image_suffixes()
    files = sorted(path for path in paths if path[path.rfind(".") :].lower() in suffixes)
    return Listing(tuple(files), frozenset(folders))


def read_file(image_root: str, path: str) -> bytes:
    """Content of the file at `path` (relative, POSIX) below `image_root`.

    Raises `OSError` where a local file cannot be read. For a URL it raises `FileNotFoundError` for a missing file,
    `RunError` where the remote side fails, and `UserError` where the filesystem of the URL is not installed.
    """
    if not is_url(image_root):
        return Path(image_root, path).read_bytes()
    filesystem, base = open_filesystem(image_root)
    try:
        content: bytes = filesystem.cat_file(f"{base}/{path}" if base else path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(path) from error
    except Exception as error:
        if (reason := describe_io_error(error)) is None:
            raise
        raise RunError(
            f"{image_root}/{path} is out of reach ({reason}): run the same command when it is back, it continues"
        ) from error
    return content


def _list_local(image_root: str) -> tuple[list[str], list[str]]:
    files: list[str] = []
    folders: list[str] = []
    pending: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(image_root, "", frozenset())]
    while pending:
        folder, prefix, above = pending.pop()
        identity = Path(folder).stat()
        key = (identity.st_dev, identity.st_ino)
        if key in above:
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(prefix + entry.name)
                    pending.append((entry.path, f"{prefix}{entry.name}/", above | {key}))
                else:
                    files.append(prefix + entry.name)
    return files, folders


def _list_remote(image_root: str) -> tuple[list[str], set[str]]:
    filesystem, base = open_filesystem(image_root)
    found = (path[len(base) :].lstrip("/") for path in filesystem.find(base))
    files = [path for path in found if not any(part.startswith(".") for part in path.split("/"))]
    if not files and not filesystem.isdir(base):
        raise FileNotFoundError(image_root)
    # PurePosixPath.parents is ten times slower than this on 10^5 files.
    folders: set[str] = set()
    for path in files:
        parent = path.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    return files, folders
