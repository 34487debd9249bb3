"""What surrounds a command, and must not decide how it ends: closed streams, narrow encodings, stray environment."""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path

from pipeline.errors import UserError


def settle() -> None:
    """Make this process, and those that it starts, independent of what surrounds it; only in a process of our own."""
    if sys.flags.optimize:
        raise UserError(
            "Python runs without assertions, which the package zarr needs: unset PYTHONOPTIMIZE, leave out -O"
        )
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        # A name that the encoding has no letters for is printed with \x.. or \u.... in it.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    # A notebook leaves its own to what its cells start; our figures need none.
    os.environ.pop("MPLBACKEND", None)
    # Those of the libraries that we call are not the user's, who may have made them errors, also in new processes.
    warnings.simplefilter("ignore")
    os.environ.pop("PYTHONWARNINGS", None)
    sys.warnoptions.clear()


def _open_streams() -> None:
    """Put the null device where a stream is closed; else the next file that opens would get what is printed."""
    opened = os.open(os.devnull, os.O_RDWR)
    while opened <= 2:
        opened = os.dup(opened)
    os.close(opened)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
