"""Files and folders that hold either the old content or all of the new one, even if the process dies."""

from __future__ import annotations

import csv
import errno
import glob
import io
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b, file_digest
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4
from zipfile import BadZipFile, ZipFile

from filelock import FileLock

from pipeline.ending import unbroken
from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends; on an exception the old file stays.

    Folders above it are made.
    """
    if path.is_dir():  # before the work that goes into the file
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden_beside(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and not error.filename:  # such as a full disk
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; OSError where it cannot be read."""
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


@contextmanager
def in_memory(path: Path) -> Iterator[BinaryIO]:
    """As `replacing`, for what torch writes: on a full disk it would abort the process or hide the cause."""
    with replacing(path) as file:
        content = io.BytesIO()
        yield content
        file.write(content.getbuffer())


def write_text(path: Path, text: str) -> None:
    r"""Write UTF-8 text, atomically; bytes of a name that are no UTF-8 become \udc.. in it."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: object) -> None:
    """Write JSON, atomically; ValueError for NaN or infinity, TypeError for what JSON has no form of."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, header_and_rows: Iterable[Iterable[object]]) -> None:
    """Write lines of values as CSV, atomically; an empty field for None.

    A text that a spreadsheet would take for a formula gets a single quote before it.
    """
    text = io.StringIO()
    rows = ([_no_formula(value) for value in row] for row in header_and_rows)
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _no_formula(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `read_tensors` reads back, atomically."""
    import torch  # here, because torch takes seconds to import and most writers do not need it

    with in_memory(path) as file:
        torch.save(dict(content), file)


def read_tensors(path: Path, device: torch.device | str = "cpu") -> Any:  # noqa: ANN401 - as torch.load has it
    """What `write_tensors` wrote; an exception of some kind where it is damaged, be it by a single bit."""
    import torch

    with ZipFile(path) as archive:
        # torch.load reads the records without a look at their checksums.
        if damaged := archive.testzip():
            raise BadZipFile(f"{damaged} has another checksum")
    return torch.load(path, map_location=device, weights_only=True)


@contextmanager
def replacing_folder(folder: Path, last: str) -> Iterator[Path]:
    """A folder to write to whose files take their places below `folder` when the block ends.

    last: the file, such as a table or a page, that lists the others. On an exception, and where the process dies before
    the block ends, everything below `folder` stays as it was. Then the old list is deleted before any other file moves,
    and the new one moves after all of them, so that a list never names a file that is not there or of another run.
    Files that an earlier call wrote and this one does not are deleted (`files_of`); all others stay: they may be
    somebody else's. UserError where something is in the way (`refuse_in_the_way`).
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = hidden_beside(folder / "files")
    temporary.mkdir()
    try:
        yield temporary
        # Of two calls at once the later one finds the files of the earlier one, and they go.
        with unbroken(), FileLock(_beside(folder, last, "lock")):
            _move_in(temporary, folder, last)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def files_of(folder: Path, last: str) -> frozenset[str] | None:
    """The files below `folder` that calls of `replacing_folder` wrote there; None where there was no such call."""
    try:
        names = json.loads(_manifest(folder, last).read_text())
        # Others may write there: nothing outside the folder is ever deleted.
        paths = [PurePosixPath(name) for name in names]
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, RecursionError):
        return None
    return frozenset(str(path) for path in paths if not path.is_absolute() and ".." not in path.parts)


def refuse_in_the_way(folder: Path, last: str, files: Iterable[str]) -> None:
    """UserError where such files could not take their places below `folder`, for what others put there."""
    own = files_of(folder, last) or frozenset()
    for parent in {parent for file in files for parent in _folders(file)}:
        place = folder / parent
        # A link leads to another folder, perhaps to one of images.
        if place.is_symlink() or (parent not in own and place.exists() and not place.is_dir()):
            raise UserError(f"{place} is no folder, and one of that name is to be written: move it away")
    own_folders = {parent for file in own for parent in _folders(file)}
    for file in files:
        if (place := folder / file).is_dir() and not place.is_symlink():
            inside = (path for path in place.rglob("*") if not path.is_dir())
            if file not in own_folders or any(path.relative_to(folder).as_posix() not in own for path in inside):
                raise UserError(f"{place} is a folder, and a file of that name is to be written: move it away")


def fitting(name: str, most: int = 255) -> str:
    """The name of a file as it is, or cut to so many bytes, as file systems ask for, with a digest of all of it."""
    if len(encoded := os.fsencode(name)) <= most:
        return name
    end = f"-{blake2b(encoded, digest_size=8).hexdigest()}{PurePosixPath(name).suffix[:10]}"
    return encoded[: most - len(os.fsencode(end))].decode("utf-8", "ignore") + end


def _move_in(new: Path, folder: Path, last: str) -> None:
    """Move all files below `new` to `folder`; a process that dies leaves no list there, and all files are known."""
    files = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
    refuse_in_the_way(folder, last, files)
    before = files_of(folder, last) or frozenset()
    write_json(_manifest(folder, last), sorted(before | files))
    (folder / last).unlink(missing_ok=True)
    _delete(folder, before - files)
    for file in files - {last}:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (new / file).replace(folder / file)
    write_json(_manifest(folder, last), sorted(files))
    (new / last).replace(folder / last)


def _delete(folder: Path, files: Iterable[str]) -> None:
    """Delete files and the folders that they leave empty, but nothing that lies behind a link."""
    emptied = set()
    for file in files:
        if not any((folder / parent).is_symlink() for parent in _folders(file)):
            if (place := folder / file).is_file() or place.is_symlink():
                place.unlink()
            emptied.update(_folders(file))
    for parent in sorted(emptied, key=len, reverse=True):
        with suppress(OSError):  # it holds something
            (folder / parent).rmdir()


def _folders(file: str) -> list[str]:
    """Every folder above a relative path."""
    return [str(parent) for parent in PurePosixPath(file).parents][:-1]


def _manifest(folder: Path, last: str) -> Path:
    return _beside(folder, last, "files")


def _beside(folder: Path, last: str, kind: str) -> Path:
    return folder / f".{last}.{kind}"


def hidden_beside(path: Path) -> Path:
    """A new hidden name in the folder of `path`, because a rename is atomic only within one file system.

    Files that dead processes of this machine left under such names are deleted.
    """
    prefix = f".{fitting(path.name, 100)}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        number = left.name.removeprefix(prefix).partition("-")[0]
        if number.isdecimal() and not _is_alive(int(number)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{prefix}{os.getpid()}-{uuid4().hex[:8]}.tmp")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
