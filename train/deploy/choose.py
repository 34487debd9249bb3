"""Which detector of a run scores which file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.census import Note, notes_of
from pipeline.errors import UserError
from train.deploy.wanted import Wanted
from train.run_folder import categories_of

Found = tuple[Path, str]


def choose(run: Path, wanted: Wanted, found: Sequence[Found]) -> tuple[list[Found], list[str | None], list[Note]]:
    """The files of `find_inputs` that are scored, the category of each, and a note of all others.

    Where the run holds several categories and none is wanted, a file is of the category whose name the folder bears
    that it is below; this folder lies directly in one that was given. Otherwise one detector scores all. UserError
    where no file is of a category, and for a threshold with detectors of several.
    """
    categories = categories_of(run) if wanted.category is None else []
    if len(categories) < 2:
        return list(found), [wanted.category] * len(found), []
    firsts = [name.partition("/")[0] if "/" in name else None for _, name in found]
    kept = [(one, first) for one, first in zip(found, firsts, strict=True) if first in categories]
    others = [str(path) for (path, _), first in zip(found, firsts, strict=True) if first not in categories]
    named = ", ".join(categories)
    if not kept:
        raise UserError(
            f"{run} holds several categories ({named}): give --category {categories[0]},"
            " or a folder whose folders of images bear these names"
        )
    if wanted.threshold is not None and len(used := {first for _, first in kept}) > 1:
        raise UserError(f"--threshold is on the scale of one detector, not of {len(used)}: give --category as well")
    notes = notes_of("", {f"not scored: in no folder of the name of a category ({named})": others})
    return [one for one, _ in kept], [first for _, first in kept], notes
