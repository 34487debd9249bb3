"""The layout of a run folder, and the settings it was made with: cells of other settings are never kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.samples import Sample
from pipeline.errors import UserError
from pipeline.files import write_csv, write_json
from train.evaluation.cell_result import CellResult

_DETECTOR = "detector.pt"
_RESULT = "cell.json"
_SEED = "seed-"

Values = NDArray[np.float64]


@dataclass
class CellFolder:
    """The folder of one category and seed: `<run>/<category>/seed-<seed>`.

    A path names a file that need not be there: an arm that trains nothing has no checkpoint and no log, and a category
    without test images has neither scores nor plots.
    """

    path: Path

    def __post_init__(self) -> None:
        self.checkpoint = self.path / "checkpoint.pt"  # where stopped training continues
        self.log = self.path / "log.csv"  # a line per step of training
        self.detector = self.path / _DETECTOR  # all that `predict` needs
        self.scores = self.path / "scores.csv"  # a line per test image
        self.scores_plot = self.path / "scores.png"  # how the scores separate
        self.maps_plot = self.path / "maps.png"  # where the detector sees anomalies
        self.result = self.path / _RESULT  # the result of the cell; written last

    @property
    def seed(self) -> int:
        """The seed that the folder's name says, 0 where the user copied it to another name."""
        number = self.path.name.removeprefix(_SEED)
        return int(number) if number.isdecimal() else 0

    @property
    def finished(self) -> bool:
        """Whether the cell is whole; the `RunFolder` knows its settings."""
        return self.result.exists()

    def read(self, dataset: str) -> CellResult:
        """The result of a finished cell; category and seed come from the path."""
        return CellResult.from_json(json.loads(self.result.read_text()), dataset, self.path.parent.name, self.seed)

    def write(self, result: CellResult) -> None:
        """Write the result of the cell, which finishes it."""
        write_json(self.result, result.to_json())

    def write_scores(self, samples: Sequence[Sample], score: Values, scorers: Mapping[str, Values]) -> None:
        """Write `scores.csv`: path, label and the score (N,) that decides, then that of each scorer by name."""
        paths, labels = ([getattr(sample, name) for sample in samples] for name in ("path", "label"))
        columns = [paths, labels, score.tolist(), *(values.tolist() for values in scorers.values())]
        write_csv(self.scores, [("path", "label", "score", *scorers), *zip(*columns, strict=True)])

    def read_scores(self) -> tuple[NDArray[np.int64], Values]:
        """Labels (N,) and the scores (N,) that decide."""
        with self.scores.open(newline="") as file:
            lines = list(csv.DictReader(file))
        return np.array([int(line["label"]) for line in lines]), np.array([float(line["score"]) for line in lines])

    def clear(self, keep_checkpoint: bool) -> None:
        """Make the folder, and delete the files of an earlier cell, so that none is taken for the next one's."""
        self.path.mkdir(parents=True, exist_ok=True)
        kept = {self.checkpoint, self.log} if keep_checkpoint else set()
        for file in {value for value in vars(self).values() if value != self.path} - kept:
            file.unlink(missing_ok=True)


@dataclass
class RunFolder:
    """The folder of a run: a `CellFolder` for each category and seed, `results.json`, and `settings.json`.

    The settings are a dictionary of part -> name -> JSON value. The part "images" has the digest of each category's
    list of images, and a category that is new to the run differs from nothing.
    """

    path: Path

    def __post_init__(self) -> None:
        self.results = self.path / "results.json"  # the results of all cells: see `train.evaluation.results.summarise`
        self.settings = self.path / "settings.json"  # what all cells were made with
        self.asked = self.path / "settings.toml"  # the last call of `train`, as its `--settings` reads it

    def cell(self, category: str, seed: int) -> CellFolder:
        """The folder of one category and seed."""
        return CellFolder(self.path / category / f"{_SEED}{seed}")

    def cells(self) -> Iterator[CellFolder]:
        """All that are there, of whatever category and seed."""
        return map(CellFolder, self.path.glob(f"*/{_SEED}*"))

    def settings_text(self) -> str:
        """The settings file of the last call of `train`; UserError where there is none."""
        if not self.asked.exists():
            made_by = "`benchmark --quick` or PatchCore, or an earlier version"
            raise UserError(f"{self.path} is a run folder without {self.asked.name}, of {made_by}: read settings.json")
        return self.asked.read_text(encoding="utf-8")

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

    def require(self, wanted: dict[str, Any], fix: str) -> None:
        """UserError that names what differs from the settings wanted, and the fix."""
        if differing := "; ".join(self.differing(wanted)):
            raise UserError(f"{self.path} was made with other settings ({differing}): {fix}")

    def keep(self, wanted: dict[str, Any]) -> None:
        """Write the settings; results made with other settings are deleted."""
        found = self._kept()
        if self.differing(wanted):
            # Also of categories and seeds not asked for now, so that a later resume does not keep them.
            for cell in self.cells():
                cell.result.unlink(missing_ok=True)
                cell.checkpoint.unlink(missing_ok=True)
        elif found is not None:
            wanted = {**wanted, "images": {**found["images"], **wanted["images"]}}
        write_json(self.settings, wanted)

    def _kept(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = json.loads(self.settings.read_text()) if self.settings.exists() else None
        return found


def find_detector(run: Path) -> Path:
    """The detector of a seed's folder, of a category's (its lowest seed), or of a run with one category.

    A path to a file is that of a detector. UserError where there is none, or where there are several categories.
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
    if any(run.rglob(f"{_SEED}*/{_RESULT}")):
        raise UserError(f"{run} was made by a version that kept no detector of this arm: train it again")
    raise UserError(f"no detector below {run}: give the folder that `train --out` wrote")
