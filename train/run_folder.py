"""The layout of a run folder: a folder per category and seed, and what is said of them all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.ownership import owned
from train.cell_folder import SEED, CellFolder


@dataclass
class RunFolder:
    """The folder of a run: a `CellFolder` for each category and seed, and what the last `train` says of its cells."""

    path: Path

    def __post_init__(self) -> None:
        self.results = self.path / "results.json"  # the results of its cells: see `train.evaluation.results.summarise`
        self.asked = self.path / "settings.toml"  # the call of `train` that wrote them, as its `--settings` reads it

    @property
    def exists(self) -> bool:
        """Whether a run wrote here, finished or not, now or in an earlier version."""
        earlier = self.path / "settings.json"
        return any(file.exists() for file in (self.results, self.asked, earlier)) or any(self.cells())

    def cell(self, category: str, seed: int) -> CellFolder:
        """The folder of one category and seed."""
        return CellFolder(self.path / category / f"{SEED}{seed}")

    def cells(self) -> Iterator[CellFolder]:
        """All that are there, of whatever category and seed."""
        return (CellFolder(path) for path in self.path.glob(f"*/{SEED}*") if path.name.removeprefix(SEED).isdecimal())

    def settings_text(self) -> str:
        """The settings file of the last call of `train`; UserError where there is none."""
        if not self.asked.exists():
            raise UserError(
                f"{self.path} is a run folder without {self.asked.name}: its `train` has not finished, or it was made"
                " by `benchmark` or an earlier version; read made_of.json of a cell"
            )
        return self.asked.read_text(encoding="utf-8")

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder inside the block; see `pipeline.ownership.owned`."""
        with owned(self.path):
            self._put_back()
            yield

    def _put_back(self) -> None:
        """Finish what a run began that was killed while it replaced a cell."""
        for old in self.path.glob(f"*/{CellFolder.OLD}{SEED}*"):
            cell = CellFolder(old.with_name(old.name.removeprefix(CellFolder.OLD)))
            if cell.path.exists():
                shutil.rmtree(old)
            else:
                old.rename(cell.path)


def find_detector(run: Path, category: str | None = None) -> Path:
    """The detector of a seed's folder, of a category's (its lowest seed), or of a run with one category.

    A path to a file is that of a detector. category: which one of a run's. UserError where there is none, where there
    are several categories and none is asked for, and where a folder cannot be read.
    """
    if category is not None:
        return _of_category(run, category)
    if run.is_file():
        return run
    try:
        if (alone := CellFolder(run).detector).is_file():
            return alone
        by_category = {run: _seeds(run)}
        if not by_category[run]:
            found = {folder: _seeds(folder) for folder in sorted(run.iterdir()) if folder.is_dir()}
            by_category = {folder: seeds for folder, seeds in found.items() if seeds}
        if len(by_category) > 1:
            names, first = ", ".join(folder.name for folder in by_category), next(iter(by_category))
            raise UserError(f"{run} holds several categories ({names}): give --category {first.name}, or {first}")
        whole = {seed: cell for seeds in by_category.values() for seed, cell in seeds.items() if cell is not None}
        for seed in sorted(whole):
            if whole[seed].detector.is_file():
                return whole[seed].detector
        if any(cell.finished for cell in whole.values()):
            raise UserError(f"{run} was made by a version that kept no detector of this arm: train it again")
        if by_category and not whole:
            raise UserError(f"no detector below {run} is finished: run the same `train` again, which continues")
    except (FileNotFoundError, NotADirectoryError):  # there is no such folder
        pass
    except OSError as error:
        raise UserError(f"{error.filename or run} cannot be read ({error.strerror}): allow it") from error
    raise UserError(f"no detector below {run}: give the folder that `train --out` wrote")


def categories_of(run: Path) -> list[str]:
    """The categories of a run folder, also those whose cells have only been begun; none of any other path."""
    try:
        if run.is_file() or CellFolder(run).detector.is_file() or _seeds(run):
            return []
        return sorted(folder.name for folder in run.iterdir() if folder.is_dir() and _seeds(folder))
    except OSError:  # `find_detector` says what it is
        return []


def _of_category(run: Path, category: str) -> Path:
    names = categories_of(run)
    if category in names:
        return find_detector(run / category)
    if names:
        raise UserError(f"{run} has no category {category} (but {', '.join(names)}): give --category {names[0]}")
    find_detector(run)  # it says so where there is none
    raise UserError(f"{run} is no run folder but a detector of one category: leave --category {category} out")


def _seeds(category: Path) -> dict[int, CellFolder | None]:
    """The cells of a category's folder by seed, None for one that has only been begun.

    A cell that was being replaced when its `train` was killed is the old one.
    """
    found: dict[int, CellFolder | None] = {}
    kinds = (CellFolder.PARTIAL, CellFolder.OLD, "")  # the last one counts
    names = {path.name: path for path in category.iterdir() if path.is_dir()}
    for kind in kinds:
        for name, path in names.items():
            number = name.removeprefix(f"{kind}{SEED}")
            if name.startswith(f"{kind}{SEED}") and number.isdecimal():
                found[int(number)] = None if kind == CellFolder.PARTIAL else CellFolder(path)
    return found
