"""The files below an image root (`pipeline.data.listing`) one by one: their content, and when it changed."""

from __future__ import annotations

import errno
import posixpath
import stat
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import RunError
from pipeline.remote import describe_io_error, is_url, open_filesystem

# Larger than any image file of `--max-pixels`; read at once, it must fit into memory.
_MOST_BYTES = 2**32


def read_file(image_root: str, path: str) -> bytes:
    """Content of the file at `path` (relative, POSIX) below `image_root`.

    Raises `OSError` where a local file cannot be read. For a URL it raises `FileNotFoundError` for a missing file,
    `RunError` where the remote side fails, and `UserError` where the filesystem of the URL is not installed.
    """
    if not is_url(image_root):
        file = Path(image_root, path)
        # A pipe that took the place of a file would be waited for; a huge file would fill the memory.
        if not stat.S_ISREG((found := file.stat()).st_mode):
            raise IsADirectoryError(errno.EISDIR, "no regular file", str(file))
        if found.st_size > _MOST_BYTES:
            raise OSError(errno.EFBIG, f"{found.st_size:,} bytes are more than the limit of {_MOST_BYTES:,}", str(file))
        return file.read_bytes()
    filesystem, base = open_filesystem(image_root)
    try:
        content: bytes = filesystem.cat_file(f"{base}/{path}" if base else path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(path) from error
    except Exception as error:
        raise _out_of_reach(f"{image_root}/{path}", error) from error
    return content


def _out_of_reach(place: str, error: Exception) -> Exception:
    """The error of a remote side that fails, or what was raised where it is something else."""
    if (reason := describe_io_error(error)) is None:
        return error
    return RunError(f"{place} is out of reach ({reason}): run the same command when it is back, it continues")


def stamps(image_root: str, paths: Sequence[str]) -> list[str]:
    """Size and time of change of each file at `paths` below `image_root`, as one text; "" for "", and for no file.

    Equal ones tell that a file is most likely the same; other ones do not tell that its content is another.
    """
    if not is_url(image_root):
        return [_stamp(Path(image_root, path)) if path else "" for path in paths]
    filesystem, base = open_filesystem(image_root)
    folders = {posixpath.dirname(path) for path in paths if path}
    folder = posixpath.commonpath(folders) if folders else ""
    try:
        found = filesystem.find(f"{base}/{folder}".rstrip("/"), detail=True)
    except Exception as error:
        raise _out_of_reach(f"{image_root}/{folder}", error) from error
    # Object stores have a tag of the content; others a time, under one of these names.
    names = ("ETag", "etag", "LastModified", "updated", "last_modified", "mtime", "created")
    known = {
        name[len(base) :].lstrip("/"): "-".join(str(about[key]) for key in ("size", *names) if about.get(key))
        for name, about in found.items()
    }
    return [known.get(path, "") for path in paths]


def _stamp(file: Path) -> str:
    try:
        found = file.stat()
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"
