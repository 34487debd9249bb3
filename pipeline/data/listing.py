"""The files below an image root, a local folder or an fsspec URL (``s3://bucket/x``), listed.

All other modules use POSIX paths relative to the image root, so that a data set has the same paths wherever it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from unicodedata import category

from PIL import Image

from pipeline.errors import UserError
from pipeline.remote import describe_io_error, is_url, open_filesystem

# Folders that file servers and archives put beside people's own.
_OF_SYSTEMS = frozenset({"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information"})

# Pillow recognises these formats but has no decoder for them; for EPS it would start another program.
NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG"})


@dataclass(frozen=True)
class Listing:
    """What lies below an image root, as POSIX paths relative to it.

    files: those that are images by their suffix; others: all other regular files; both sorted by code point. folders:
    only a local root lists those without files, since object stores have none. passed_over: why a name is in neither;
    names that are not UTF-8 are escaped there.
    """

    files: tuple[str, ...]
    folders: frozenset[str]
    others: tuple[str, ...]
    passed_over: dict[str, str]


def absolute(image_root: str) -> str:
    """`image_root` as an absolute local path, ``~`` expanded; a URL as it is."""
    try:
        return image_root if is_url(image_root) else str(Path(image_root).expanduser().absolute())
    except RuntimeError as error:
        raise UserError(f"{image_root} names a home folder that is not there: give another path") from error


def last_part(image_root: str) -> str:
    """Name of the root folder itself: the last part of its path, or "root" where it has none."""
    local = image_root.rstrip("/").rpartition("://")[2] if is_url(image_root) else Path(image_root).resolve().as_posix()
    return PurePosixPath(local).name or "root"


def path_digest(path: str) -> bytes:
    """Eight bytes of a path's digest: an order of images that depends on nothing else and that nobody chose."""
    return blake2b(path.encode(), digest_size=8).digest()


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes (lower case, with the dot) of the formats that the installed Pillow decodes."""
    suffixes = Image.registered_extensions().items()
    return frozenset(s for s, kind in suffixes if kind in Image.OPEN and kind not in NOT_DECODED)


def list_images(image_root: str) -> Listing:
    """All files below `image_root`, images by their suffix in any case; hidden files and folders are passed over.

    No file is opened. Only regular files are listed: a device or a pipe would be read for ever. Links are followed, but
    never into a folder that holds them.

    Raises `UserError` where `image_root` is missing or is no folder, and where it or a folder in it cannot be read.
    """
    try:
        paths, folders, passed_over = _list_remote(image_root) if is_url(image_root) else _list_local(image_root)
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{image_root}: no such folder; data/README.md says where each data set is from") from None
    except Exception as error:
        # ValueError: a URL without a bucket.
        reason = str(error) if isinstance(error, ValueError) else describe_io_error(error)
        if reason is None:
            raise
        raise UserError(f"{image_root}: cannot be listed ({getattr(error, 'strerror', None) or reason})") from error
    suffixes = image_suffixes()
    paths.sort()
    files = [path for path in paths if path[path.rfind(".") :].lower() in suffixes]
    others = sorted(set(paths).difference(files)) if len(files) < len(paths) else []
    return Listing(tuple(files), frozenset(folders), tuple(others), passed_over)


def _list_local(image_root: str) -> tuple[list[str], list[str], dict[str, str]]:
    files: list[str] = []
    folders: list[str] = []
    passed_over: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    # A link to a folder above the root would lead into it again.
    holding = frozenset(_identity(str(parent)) for parent in Path(image_root).resolve().parents)
    pending: list[tuple[str, str, frozenset[tuple[int, int]], int]] = [(image_root, "", holding, 0)]
    while pending:
        folder, prefix, above, links = pending.pop()
        key = _identity(folder)
        if key in above:
            passed_over[prefix.removesuffix("/")] = "a link to a folder that holds it"
            continue
        # Folders that link to each other would be listed once for every way through them.
        if links > 1 and key in seen:
            passed_over[prefix.removesuffix("/")] = "a link in a linked folder, to a folder that is listed already"
            continue
        seen.add(key)
        with _scan(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    passed_over[_readable(prefix + name)] = "hidden"
                elif why := "" if name.isascii() and name.isprintable() else _is_unspeakable(name):
                    passed_over[_readable(prefix + name)] = why
                elif entry.is_file(follow_symlinks=False):  # nearly all of them, and without another look at the disk
                    files.append(prefix + name)
                elif why := _is_odd(entry):
                    passed_over[prefix + name] = why
                elif entry.is_dir() and name in _OF_SYSTEMS:
                    passed_over[prefix + name] = "a folder of the operating system"
                elif entry.is_dir():
                    folders.append(prefix + name)
                    pending.append((entry.path, f"{prefix}{name}/", above | {key}, links + entry.is_symlink()))
                else:
                    files.append(prefix + name)
    return files, folders, passed_over


def _identity(folder: str) -> tuple[int, int]:
    found = Path(folder).stat()
    return found.st_dev, found.st_ino


def _scan(folder: str) -> contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(folder)
    except PermissionError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); allow it or move it away") from None


def _is_odd(entry: os.DirEntry[str]) -> str:
    """Why an entry is neither a folder nor a regular file, "" where it is."""
    # Also a link to itself, of which is_dir and is_file raise.
    if entry.is_symlink() and not Path(entry.path).exists():
        return "a link that leads nowhere"
    return "" if entry.is_dir() or entry.is_file() else "no regular file"


def _is_unspeakable(name: str) -> str:
    """Why a name cannot stand in a table or a line, "" where it can."""
    # Python keeps the bytes of a name that it cannot decode as surrogates, which no other text holds.
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "its name is not UTF-8"
    return "its name holds a control character" if any(category(letter) == "Cc" for letter in name) else ""


def _readable(name: str) -> str:
    escaped = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(repr(letter)[1:-1] if category(letter) == "Cc" else letter for letter in escaped)


def _list_remote(image_root: str) -> tuple[list[str], set[str], dict[str, str]]:
    filesystem, base = open_filesystem(image_root)
    files: list[str] = []
    passed_over: dict[str, str] = {}
    for found in filesystem.find(base):
        path = found[len(base) :].lstrip("/")
        if path.startswith(".") or "/." in path:
            passed_over[path] = "hidden"
        else:
            files.append(path)
    if not files and not filesystem.isdir(base):
        raise FileNotFoundError(image_root)
    # PurePosixPath.parents is ten times slower than this on 10^5 files.
    folders: set[str] = set()
    for path in files:
        parent = path.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    return files, folders, passed_over
