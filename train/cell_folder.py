"""The folder of one category and seed of a run; a cell takes its place there when it is whole."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.samples import Sample
from pipeline.errors import UserError
from pipeline.files import sha256_of, write_csv, write_json
from train.evaluation.cell_result import CellResult
from train.made_of import MadeOf
from train.threshold import rounded

SEED = "seed-"

# In `cell.json`: the SHA-256 of files by name, and of all else in it.
_FILES, _DIGEST = "files", "sha256"

Values = NDArray[np.float64]


@dataclass
class CellFolder:
    """The folder of one category and seed, `<run>/<category>/seed-<seed>`, or of one that is being made beside it.

    A path names a file that need not be there: an arm that trains nothing has no checkpoint and no log, and a category
    without test images has neither scores nor plots.
    """

    PARTIAL: ClassVar[str] = "partial-"  # begins the name of one that is being made
    OLD: ClassVar[str] = "old-"  # and of one that is being replaced

    path: Path

    def __post_init__(self) -> None:
        self.made_of = self.path / "made_of.json"  # what decides it; written first
        self.checkpoint = self.path / "checkpoint.pt"  # where stopped training continues
        self.log = self.path / "log.csv"  # a line per step of training
        self.detector = self.path / "detector.pt"  # all that `predict` needs
        self.normals = self.path / "normals.csv"  # a line per normal that the threshold rests on, the worst first
        self.scores = self.path / "scores.csv"  # a line per test image
        self.scores_plot = self.path / "scores.png"  # how the scores separate
        self.maps_plot = self.path / "maps.png"  # where the detector sees anomalies
        self.result = self.path / "cell.json"  # the result of the cell; written last

    @property
    def seed(self) -> int:
        """The seed that the folder's name says, 0 where the user copied it to another name."""
        number = self.path.name.removeprefix(self.PARTIAL).removeprefix(SEED)
        return int(number) if number.isdecimal() else 0

    @property
    def partial(self) -> CellFolder:
        """The folder beside it in which its next content is made."""
        return CellFolder(self.path.with_name(f"{self.PARTIAL}{self.path.name}"))

    @property
    def finished(self) -> bool:
        """Whether the cell is whole."""
        return self.result.exists()

    def begin(self, made_of: MadeOf) -> None:
        """Make the folder; what lies there stays if it is made of the same, and else goes."""
        if self.path.exists() and self.changes(made_of):
            shutil.rmtree(self.path)
        if not self.made_of.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.made_of, made_of.to_json())

    def changes(self, made_of: MadeOf) -> list[str]:
        """In words how the cell that lies here differs from one made of this; none where it is the same."""
        if not self.made_of.exists():
            return ["nothing says what it was made of, as in an earlier version"]
        try:
            return made_of.changes(MadeOf.from_json(_read_json(self.made_of)))
        except (KeyError, TypeError, AttributeError, ValueError):
            return [f"{self.made_of.name} is damaged"]

    def take_place_of(self, cell: CellFolder) -> None:
        """Move this whole cell to the place of another, whose files go; files that others put there move with it."""
        old = cell.path.with_name(f"{self.OLD}{cell.path.name}")
        if not cell.path.exists():
            self.path.rename(cell.path)
            return
        if old.exists():
            shutil.rmtree(old)
        ours = {file.name for file in vars(cell).values()}
        for file in cell.path.iterdir():
            if file.name not in ours:
                file.rename(self.path / file.name)
        cell.path.rename(old)
        self.path.rename(cell.path)
        shutil.rmtree(old)

    def read(self, dataset: str) -> CellResult:
        """The result of a finished cell; category and seed come from the path. UserError where it is damaged."""
        return self._read(dataset)[0]

    def _read(self, dataset: str) -> tuple[CellResult, dict[str, str]]:
        """The result, and the digests of what it rests on, which an earlier version did not write."""
        try:
            value = _read_json(self.result)
            if value.get(_DIGEST, _digest(value)) != _digest(value):
                raise ValueError("its content is another than was written")
            result = CellResult.from_json(value, dataset, self.path.parent.name, self.seed)
            return result, dict(value.get(_FILES, {}))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{self.result} is damaged: make the cell again with --overwrite") from error

    def write(self, result: CellResult) -> None:
        """Write the result of the cell, which finishes it, and the digests of what it rests on."""
        files = {file.name: sha256_of(file) for file in (self.detector, self.normals, self.scores) if file.exists()}
        value = {**result.to_json(), _FILES: files}
        write_json(self.result, {**value, _DIGEST: _digest(value)})

    def refuse_damage(self, dataset: str) -> None:
        """UserError where a file of a finished cell is gone or is not what was written."""
        for name, digest in self._read(dataset)[1].items():
            file = self.path / name
            if not file.is_file() or sha256_of(file) != digest:
                raise UserError(f"{file} is gone or damaged: make the cell again with --overwrite")

    def write_normals(self, paths: Sequence[str], scores: Values) -> None:
        """Write `normals.csv`: path and score (N,) of each normal, as one that the detector did not see."""
        worst = sorted(zip(map(rounded, scores.tolist()), paths, strict=True), key=lambda one: (-one[0], one[1]))
        write_csv(self.normals, [("path", "score"), *((path, score) for score, path in worst)])

    def read_normals(self, most: int) -> list[tuple[str, float]]:
        """Paths and scores of the first lines of `normals.csv`; none in a cell of an earlier version."""
        if not self.normals.exists():
            return []
        with _sound(self.normals), self.normals.open(newline="", encoding="utf-8") as file:
            return [(line["path"], float(line["score"])) for line in islice(csv.DictReader(file), most)]

    def write_scores(self, samples: Sequence[Sample], score: Values, scorers: Mapping[str, Values]) -> None:
        """Write `scores.csv`: path, label and the score (N,) that decides, then that of each scorer by name."""
        paths, labels = ([getattr(sample, name) for sample in samples] for name in ("path", "label"))
        columns = [paths, labels, score.tolist(), *(values.tolist() for values in scorers.values())]
        write_csv(self.scores, [("path", "label", "score", *scorers), *zip(*columns, strict=True)])

    def read_scores(self) -> tuple[NDArray[np.int64], Values]:
        """Labels (N,) and the scores (N,) that decide; UserError where the table is damaged."""
        with _sound(self.scores), self.scores.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
            return np.array([int(line["label"]) for line in lines]), np.array([float(line["score"]) for line in lines])


def files_in(cells: Sequence[CellFolder]) -> str:
    """The files of finished cells that a reader wants, in words; those that only some cells have by themselves."""
    written = Counter(
        file.name
        for cell in cells
        for file in (cell.detector, cell.normals, cell.scores, cell.scores_plot, cell.maps_plot)
        if file.exists()
    )
    of_each = [name for name, count in written.items() if count == len(cells)]
    of_some = [name for name, count in written.items() if count < len(cells)]
    return ", ".join(of_each) + (f"; in some of them {', '.join(of_some)}" if of_some else "")


@contextmanager
def _sound(table: Path) -> Iterator[None]:
    """UserError where what is read of a table inside the block is not what was written."""
    try:
        yield
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{table} is damaged: make the cell again with --overwrite") from error


def _read_json(file: Path) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # no object, and so refused by whoever reads it


def _digest(value: dict[str, Any]) -> str:
    rest = {name: found for name, found in value.items() if name != _DIGEST}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
