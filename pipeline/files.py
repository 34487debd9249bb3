"""Files and folders that hold either the old content or all of the new one, even if the process dies."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from pipeline.ending import unbroken


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends; on an exception the old file stays.

    Folders above it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with replacing(path) as file:
        file.write(text.encode())


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
    """Write what `torch.load(path, weights_only=True)` reads back, atomically."""
    import torch  # here, because torch takes seconds to import and most writers do not need it

    with replacing(path) as file:
        torch.save(dict(content), file)


@contextmanager
def replacing_folder(folder: Path, last: str) -> Iterator[Path]:
    """A folder to write to whose files take their places below `folder` when the block ends.

    last: the file, such as a table or a page, that lists the others. On an exception, and where the process dies before
    the block ends, everything below `folder` stays as it was. Then the old list is deleted before any other file moves,
    and the new one moves after all of them, so that a list never names a file that is not there. Files of other names
    always stay: they may be somebody else's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(folder / "files")
    temporary.mkdir()
    try:
        yield temporary
        files = [path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file()]
        with unbroken():
            (folder / last).unlink(missing_ok=True)
            for file in sorted(files, key=lambda file: file == Path(last)):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (temporary / file).replace(folder / file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A new hidden name in the folder of `path`, because a rename is atomic only within one file system.

    Files that dead processes of this machine left under such names are deleted.
    """
    prefix = f".{path.name}.{socket.gethostname()}."
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
