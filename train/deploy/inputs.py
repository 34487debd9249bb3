"""Which files `predict` scores, and how the overlay of each is called: what lies below its outcome is never scored."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipeline.data.census import Note, by_reason, notes_of, unlisted
from pipeline.data.ground_truth import beside_photographs
from pipeline.data.listing import list_images
from pipeline.errors import UserError
from pipeline.files import fitting
from train.deploy.wanted import OVERLAYS, SUFFIXES, beside

_OWN = "below --out, where nothing is ever scored"


class Below:
    """The files below a folder, however a path to them is spelled, through links as well."""

    def __init__(self, folder: Path) -> None:
        self._folder = _identity(folder)
        self._known: dict[Path, bool] = {}

    def __contains__(self, file: Path) -> bool:
        """Whether the file, or what it is a link to, lies below the folder."""
        if self._folder is None:
            return False
        # A folder and the ".." behind it need not cancel: the folder may be a link.
        place = file.parent.resolve() if ".." in file.parts else file.parent.absolute()
        return self._holds(place) or ((place / file.name).is_symlink() and self._holds(file.resolve().parent))

    def _holds(self, folder: Path) -> bool:
        """Whether a folder is the one or lies below it."""
        if (known := self._known.get(folder)) is None:
            known = _identity(folder) == self._folder
            known = known or (folder.parent != folder and self._holds(folder.parent))
            known = known or (folder.is_symlink() and self._holds(folder.resolve()))
            self._known[folder] = known
        return known


def find_inputs(targets: Sequence[str], out: Path) -> tuple[list[tuple[Path, str]], list[Note]]:
    """Every image file, with the name that its overlay starts from, and what else is there.

    targets: files, and folders for all images below them. Nothing below `out` is an input, so that no overlay is ever
    scored. UserError for a target without an image.
    """
    below, found, notes, own = Below(out), list[tuple[Path, str]](), list[Note](), list[str]()
    for target in map(Path, targets):
        _refuse_no_text(target)
        if target.is_dir():
            images, others = _inside(target, below)
            found += [(target / name, name) for name in images]
            notes += others
        elif not target.exists():
            raise UserError(f"{target} does not exist: give image files or folders")
        elif not target.is_file():
            raise UserError(f"{target} is no regular file: give image files or folders")
        elif target in below:
            own.append(str(target))
        else:
            found.append((target, target.name))
    notes += notes_of("", {_OWN: own})
    if not found:
        raise UserError(f"{own[0]} lies below --out {out}, where nothing is ever scored: give another --out")
    return found, notes


def _inside(folder: Path, below: Below) -> tuple[list[str], list[Note]]:
    """The images below a folder, and notes of all else."""
    listing = list_images(str(folder))
    own = {name for name in (*listing.files, *listing.others) if folder / name in below}
    files, others = (tuple(name for name in names if name not in own) for names in (listing.files, listing.others))
    beside = beside_photographs(files, twins=False)
    images = [name for name in files if name not in beside]
    if not images:
        but = f" but what lies below --out ({len(own)} files), where nothing is ever scored" if own else ""
        raise UserError(f"no image below {folder}{but}: give image files, or a folder that holds some")
    kinds = {_OWN: sorted(own)} | by_reason(beside)
    passed_over = {name: why for name, why in listing.passed_over.items() if folder / name not in below}
    return images, [*notes_of("", kinds), *unlisted(replace(listing, others=others, passed_over=passed_over))]


def with_overlays(
    files: Iterable[tuple[Path, str]], foreign: Iterable[str] = (), folders: Sequence[str] = (OVERLAYS,)
) -> Iterator[tuple[Path, str]]:
    """Every file, and the name of its overlay, which no other has; where several would share one, a number is added.

    folders: those that get a file of this name, but for its suffix. foreign: paths, from above these folders, of files
    that are there already and not ours.
    """
    files, foreign = list(files), list(foreign)
    above = {str(parent) for _, name in files for parent in PurePosixPath(name).parents}
    taken = {f"{folder}/{parent}" for folder in folders for parent in above}
    taken.update(foreign, (str(parent) for name in foreign for parent in PurePosixPath(name).parents))
    numbers: Counter[str] = Counter()
    for path, name in files:
        stem = os.path.splitext(name)[0]  # noqa: PTH122 - Path has no stem of a name such as "..."
        folder, slash, last = stem.rpartition("/")
        places: list[str] = []
        while not places or not taken.isdisjoint(places):
            numbers[stem] += 1
            number = f"-{numbers[stem]}" if numbers[stem] > 1 else ""
            overlay = f"{folder}{slash}{fitting(f'{last}{number}{SUFFIXES[OVERLAYS]}')}"
            places = [beside(place, overlay) for place in folders]
        taken.update(places)
        yield path, overlay


def _refuse_no_text(target: Path) -> None:
    try:
        str(target).encode()
    except UnicodeEncodeError:
        name = os.fsencode(target).decode("utf-8", "backslashreplace")
        raise UserError(f"{name}: a name that is not UTF-8, which no table can hold: rename it") from None


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
