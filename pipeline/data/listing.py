"""What lies below a root: a local folder or an fsspec URL (``s3://bucket/x``), listed once, read by file.

Everything above this module works on POSIX paths relative to the root, so that a data set has the same paths
wherever it lies.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from PIL import Image

from pipeline.errors import RunError, UserError
from pipeline.remote import failure, is_url, open_filesystem

# Pillow recognises these formats but has no decoder for them.
_STUBS = frozenset({"BUFR", "GRIB", "HDF5", "MPEG"})


@dataclass(frozen=True)
class Listing:
    """The image files and the folders below a root, as POSIX paths relative to it.

    `files` is sorted by code point. Folders without files are seen in a local root only: object stores have
    none.
    """

    files: tuple[str, ...]
    folders: frozenset[str]


def absolute(root: str) -> str:
    """`root` as an absolute local path, ``~`` expanded; a URL as it is."""
    return root if is_url(root) else str(Path(root).expanduser().absolute())


def last_part(root: str) -> str:
    """Name of the root folder itself: the last part of its path, or "root" where it has none."""
    local = root.rstrip("/").rpartition("://")[2] if is_url(root) else Path(root).resolve().as_posix()
    return PurePosixPath(local).name or "root"


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes (lower case, with the dot) of the formats that the installed Pillow decodes."""
    suffixes = Image.registered_extensions().items()
    return frozenset(s for s, kind in suffixes if kind in Image.OPEN and kind not in _STUBS)


def list_images(root: str) -> Listing:
    """All image files below `root`, by suffix in any case; hidden files and folders are left out.

    No file is opened. Links to folders are followed, but never into a folder that holds them.

    Raises `UserError` where `root` is missing, is no folder, or cannot be read.
    """
    try:
        paths, folders = _list_remote(root) if is_url(root) else _list_local(root)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{root}: no such folder; data/README.md says where each data set is from") from None
    except Exception as error:
        # ValueError: a URL without a bucket.
        reason = str(error) if isinstance(error, ValueError) else failure(error)
        if reason is None:
            raise
        raise UserError(f"{root}: cannot be listed ({getattr(error, 'strerror', None) or reason})") from error
    suffixes = image_suffixes()
    files = sorted(path for path in paths if path[path.rfind(".") :].lower() in suffixes)
    return Listing(tuple(files), frozenset(folders))


def read_file(root: str, path: str) -> bytes:
    """Content of the file at `path` (relative, POSIX) below `root`.

    Raises `OSError` where it cannot be read. Of a URL that is only `FileNotFoundError`: `RunError` where the remote
    side fails, which says nothing about the file; `UserError` where the filesystem of the URL is not installed.
    """
    if not is_url(root):
        return Path(root, path).read_bytes()
    filesystem, base = open_filesystem(root)
    try:
        content: bytes = filesystem.cat_file(f"{base}/{path}" if base else path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(path) from error
    except Exception as error:
        if (reason := failure(error)) is None:
            raise
        raise RunError(f"{root}/{path} is out of reach ({reason}): the same command goes on when it is back") from error
    return content


def _list_local(root: str) -> tuple[list[str], list[str]]:
    files: list[str] = []
    folders: list[str] = []
    pending: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(root, "", frozenset())]
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


def _list_remote(root: str) -> tuple[list[str], set[str]]:
    filesystem, base = open_filesystem(root)
    found = (path[len(base) :].lstrip("/") for path in filesystem.find(base))
    files = [path for path in found if not any(part.startswith(".") for part in path.split("/"))]
    if not files and not filesystem.isdir(base):
        raise FileNotFoundError(root)
    # PurePosixPath.parents is ten times slower than this on 10^5 files.
    folders: set[str] = set()
    for path in files:
        parent = path.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    return files, folders
