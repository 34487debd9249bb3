"""Files and folders that hold the old content or the whole new one, whenever the process dies."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends; on an exception the old file stays.

    Folders above it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, as a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
    """Write lines of values as CSV, atomically; an empty field for None."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(header_and_rows)
    write_text(path, text.getvalue())


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `torch.load(path, weights_only=True)` reads back, atomically."""
    import torch  # here: most writers do without the seconds of this import

    with replacing(path) as file:
        torch.save(dict(content), file)


@contextmanager
def replacing_folder(folder: Path, last: str) -> Iterator[Path]:
    """A folder to write to whose files take their places below `folder` when the block ends.

    last: the file, such as a table or a page, that lists the others: it moves after all of them, so that it never
    lists what is not there. On an exception, and where the process dies before the block ends, everything below
    `folder` stays as it was. Files of other names, which may be somebody else's, always stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process of this number that was killed
    temporary.mkdir()
    try:
        yield temporary
        files = [path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda file: file == Path(last)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (temporary / file).replace(folder / file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
