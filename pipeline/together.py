"""Several files of one folder that take their places together."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.ending import unbroken
from pipeline.files import hidden_beside


@contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[Path]:
    """A folder to write files of these names to, which take the places of `paths` when the block ends.

    paths: of one folder, which is made. The last file tells of the others: its old one goes before any other moves, and
    its new one comes last, so that it never lies beside others than its own, even if the process dies. On an exception
    all old ones stay.
    """
    for path in paths:
        if path.is_dir():  # before the work that goes into the files
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    paths[-1].parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden_beside(paths[-1])
    try:
        temporary.mkdir()
        yield temporary
        for path in paths:
            with (temporary / path.name).open("rb") as file:
                os.fsync(file.fileno())
        with unbroken():
            paths[-1].unlink(missing_ok=True)
            for path in paths:
                (temporary / path.name).replace(path)
    except OSError as error:
        if error.errno and (
            not error.filename or Path(error.filename).is_relative_to(temporary)
        ):  # such as a full disk
            raise OSError(error.errno, error.strerror, str(paths[0])) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
