"""Where tables are printed: as wide as the terminal, and as wide as they need where there is none."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from pipeline.data.census import Note, missing

# No table is cut or folded in a log.
_WIDE = 2000


def console(*, stderr: bool = False) -> Console:
    """The console of standard output or standard error."""
    # Not Console.is_terminal: FORCE_COLOR makes that True for a file.
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else _WIDE)


def print_notes(notes: Sequence[Note], title: str, *, stderr: bool = True) -> None:
    """Print a table of notes, where there are any."""
    from pipeline.views.tables import notes_table  # here: it imports what most commands do not need

    if notes:
        console(stderr=stderr).print(notes_table(notes, title))


def print_known(notes: Sequence[Note]) -> None:
    """Print what is to be known of the images that there are, in a table, and of what there are none."""
    print_notes([note for note in notes if note.count], "to be known of the data")
    for line in missing(notes):
        print(line)
