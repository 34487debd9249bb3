"""The layout of a run folder, and what it was made with, so that no cell is taken for one made otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import write_json
from train.results import CellResult

_DETECTOR = "detector.pt"
_SEED = "seed-"


@dataclass(frozen=True)
class CellFolder:
    """The folder of one category and seed: `<run>/<category>/seed-<seed>`.

    A path names a file that need not be there: an arm that trains nothing has no checkpoint and no log, PatchCore has
    no detector, and a category without test images has neither scores nor plots.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """What training goes on from where it was cut off."""
        return self.path / "checkpoint.pt"

    @property
    def log(self) -> Path:
        """A line a step of training."""
        return self.path / "log.csv"

    @property
    def detector(self) -> Path:
        """All that `predict` needs."""
        return self.path / _DETECTOR

    @property
    def scores(self) -> Path:
        """A line a test image."""
        return self.path / "scores.csv"

    @property
    def scores_plot(self) -> Path:
        """How the scores separate."""
        return self.path / "scores.png"

    @property
    def maps_plot(self) -> Path:
        """Where the detector sees anomalies."""
        return self.path / "maps.png"

    @property
    def result(self) -> Path:
        """What the cell came to; written last."""
        return self.path / "cell.json"

    @property
    def seed(self) -> int:
        """The seed that the folder's name says, 0 where the user copied it to another name."""
        number = self.path.name.removeprefix(_SEED)
        return int(number) if number.isdecimal() else 0

    @property
    def finished(self) -> bool:
        """Whether the cell is whole; with which settings, the `RunFolder` knows."""
        return self.result.exists()

    def read(self, dataset: str) -> CellResult:
        """What a finished cell came to; category and seed are those of the path."""
        return CellResult.from_json(json.loads(self.result.read_text()), dataset, self.path.parent.name, self.seed)

    def write(self, result: CellResult) -> None:
        """Write what the cell came to, which finishes it."""
        write_json(self.result, result.to_json())

    def clear(self, keep_checkpoint: bool) -> None:
        """Make the folder, and take from an earlier cell what must not be taken for the next one's."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not keep_checkpoint:
            self.checkpoint.unlink(missing_ok=True)
        self.result.unlink(missing_ok=True)
        self.detector.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run: a `CellFolder` for each category and seed, `results.json`, and `settings.json`.

    The settings are a dictionary of part -> name -> JSON value. The part "images" has the digest of each category's
    list of images, and a category that is new to the run differs from nothing.
    """

    path: Path

    def cell(self, category: str, seed: int) -> CellFolder:
        """The folder of one category and seed."""
        return CellFolder(self.path / category / f"{_SEED}{seed}")

    def cells(self) -> Iterator[CellFolder]:
        """All that are there, of whatever category and seed."""
        return map(CellFolder, self.path.glob(f"*/{_SEED}*"))

    @property
    def results(self) -> Path:
        """What all cells came to: see `train.results.summarise`."""
        return self.path / "results.json"

    @property
    def settings(self) -> Path:
        """What all cells were made with."""
        return self.path / "settings.json"

    def differing(self, wanted: dict[str, Any]) -> list[str]:
        """A line `part.name: old, not new` for each setting in which the folder's differ from those wanted."""
        found = self._kept() or wanted
        found = {**found, "images": {**wanted["images"], **found["images"]}}
        pairs = [
            (f"{part}.{name}", value, found.get(part, {}).get(name))
            for part in wanted
            for name, value in wanted[part].items()
        ]
        return [f"{name}: {old}, not {new}" for name, new, old in pairs if json.dumps(new) != json.dumps(old)]

    def keep(self, wanted: dict[str, Any]) -> None:
        """Write the settings; what others made goes."""
        found = self._kept()
        if self.differing(wanted):
            # Also of categories and seeds not asked for now: a later resume must not take them for made with these.
            for cell in self.cells():
                cell.result.unlink(missing_ok=True)
                cell.checkpoint.unlink(missing_ok=True)
        elif found is not None:
            wanted = {**wanted, "images": {**found["images"], **wanted["images"]}}
        write_json(self.settings, wanted)

    def _kept(self) -> dict[str, Any] | None:
        if not self.settings.exists():
            return None
        content: dict[str, Any] = json.loads(self.settings.read_text())
        return content


def find_detector(run: Path) -> Path:
    """The detector of a seed's folder, of a category's (its lowest seed), or of a run with one category.

    A file is taken for one. UserError where there is none, or where there are several categories.
    """
    if run.is_file():
        return run
    for above in ("", f"{_SEED}*/", f"*/{_SEED}*/"):
        found = sorted((CellFolder(path.parent) for path in run.glob(above + _DETECTOR)), key=lambda cell: cell.seed)
        categories = sorted({cell.path.parent.name for cell in found})
        if len(categories) > 1:
            raise UserError(f"{run} holds several categories: give one, such as {run / categories[0]}")
        if found:
            return found[0].detector
    raise UserError(f"no detector below {run}: give the folder that `train --out` wrote")
