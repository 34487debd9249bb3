"""One process at a time writes to a folder: a lock that a dead owner loses."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import UserError
from pipeline.files import write_json

_LOCK = ".lock"
_OWNER = ".owner.json"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own a folder inside the block; it is made where it is not there.

    UserError, which names the owner, where another process owns it. The system takes the lock from a process that
    ends, however it ends, so the file that is left behind locks nothing. Processes that this one starts do not own it.
    """
    lock = FileLock(folder / _LOCK)
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        write_json(folder / _OWNER, {"host": socket.gethostname(), "process": os.getpid(), "since": since})
    except Timeout as error:
        raise UserError(
            f"{folder} is being written by {_owner(folder)}: wait for its end, or give another --out"
        ) from error
    except OSError as error:
        lock.release()
        raise UserError(f"{folder} cannot be written to ({error.strerror}): allow it, or give another --out") from error
    try:
        yield
    finally:
        (folder / _OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str:
    try:
        found = json.loads((folder / _OWNER).read_text())
        return f"process {found['process']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has begun, or ended, just now
        return "another process"
