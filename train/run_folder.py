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
        return map(CellFolder, self.path.glob(f"*/{SEED}*"))

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


def find_detector(run: Path) -> Path:
    """The detector of a seed's folder, of a category's (its lowest seed), or of a run with one category.

    A path to a file is that of a detector. UserError where there is none, or where there are several categories.
    """
    if run.is_file():
        return run
    for above in ("", f"{SEED}*/", f"*/{SEED}*/"):
        found = sorted(
            (CellFolder(path.parent) for path in run.glob(f"{above}detector.pt")), key=lambda cell: cell.seed
        )
        categories = sorted({cell.path.parent.name for cell in found})
        if len(categories) > 1:
            raise UserError(f"{run} holds several categories: give one, such as {run / categories[0]}")
        if found:
            return found[0].detector
    if any(run.rglob(f"{SEED}*/cell.json")):
        raise UserError(f"{run} was made by a version that kept no detector of this arm: train it again")
    if any(run.rglob(f"{CellFolder.PARTIAL}{SEED}*")):
        raise UserError(f"no detector below {run} is finished: run the same `train` again, which continues")
    raise UserError(f"no detector below {run}: give the folder that `train --out` wrote")
