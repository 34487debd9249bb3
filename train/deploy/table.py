"""What `predict` says of each file: a line of its table, as CSV and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from pipeline.files import write_csv
from train.threshold import DECIMALS

_COLUMNS = ("path", "score", "p_value", "threshold", "anomalous", "status")
OK = "ok"


@dataclass(frozen=True)
class Line:
    """What is said of a file; all but the last is a line of the table.

    path as the user gave it; score and threshold on the detector's scale, rounded; p_value as in `Prediction`;
    anomalous: whether the score is above the threshold; status: begins with "ok", or is why there is no score; drawn:
    whether an overlay was written.
    """

    path: str
    score: float | None
    p_value: float | None
    threshold: float
    anomalous: bool | None
    status: str
    drawn: bool

    @property
    def row(self) -> tuple[object, ...]:
        """It in the table, where the numbers are as they were compared."""
        anomalous = None if self.anomalous is None else int(self.anomalous)
        return self.path, *map(_decimal, (self.score, self.p_value, self.threshold)), anomalous, self.status

    @property
    def value(self) -> dict[str, object]:
        """It as JSON."""
        told = self.path, self.score, self.p_value, self.threshold, self.anomalous, self.status
        return dict(zip(_COLUMNS, told, strict=True))


def write_table(file: Path, lines: Iterable[Line]) -> None:
    """Write the table, atomically."""
    write_csv(file, [_COLUMNS, *(line.row for line in lines)])


def worst_first(lines: Sequence[Line]) -> list[Line]:
    """The lines that have a score: rarest among the normals first, then furthest above the threshold.

    With one detector that is the order of the scores; scores of several are on different scales.
    """

    def place(line: Line) -> tuple[float, float]:
        assert line.score is not None
        return 0.0 if line.p_value is None else line.p_value, line.threshold - line.score

    return sorted((line for line in lines if line.score is not None), key=place)


def _decimal(value: float | None) -> Decimal | None:
    """A number with all its decimals; as a text, one below 0 would be taken for a formula."""
    return None if value is None else Decimal(f"{value:z.{DECIMALS}f}")
