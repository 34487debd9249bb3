"""What `train` says of each detector in the end: its threshold, what that rests on, and the normals to look at."""

from __future__ import annotations

from collections.abc import Sequence

from train.cell_folder import CellFolder
from train.evaluation.cell_result import CellResult
from train.threshold import DECIMALS, ENOUGH, FalsePositives, normals_for

# Normals that are named as the most unlike the others.
_WORST = 3


def threshold_line(threshold: float, rests_on: FalsePositives, asked: float, what: str = "held-out scores") -> str:
    """In a sentence the threshold, what it rests on, the rate of false positives to expect, and what it takes.

    what: the plural of what was counted.
    """
    above, count = rests_on.above, rests_on.normals
    place = f"the highest of {count} {what}" if not above else f"{above} of {count} {what} are above it"
    rates = f"expect {_percent(rests_on.estimate)} false alarms, at most {_percent(rests_on.high)} (95 %)"
    line = f"threshold {threshold:.{DECIMALS}f}: {place}; {rates}"
    if rests_on.estimate > asked:
        line += f"; for {_percent(asked)} give {normals_for(asked)} normals"
    return f"{line}; with fewer than {ENOUGH}, any threshold is a guess" if count < ENOUGH else line


def outcome_lines(cells: Sequence[tuple[CellFolder, CellResult]], asked: float) -> list[str]:
    """A line per finished cell on its threshold, and one on the normals that are most unlike the others.

    asked: the rate of false positives that the thresholds are for.
    """
    lines = []
    for folder, cell in cells:
        name = f"{cell.category} seed {cell.seed}"
        if cell.false_positives is not None:
            lines.append(f"{name}: {threshold_line(cell.threshold, cell.false_positives, asked)}")
        if worst := folder.read_normals(_WORST):
            named = ", ".join(f"{path} ({score:.{DECIMALS}f})" for path, score in worst)
            lines.append(f"{name}: the normals most unlike the others: {named}; all in {folder.normals}")
    return lines


def _percent(rate: float) -> str:
    return f"{100 * rate:.2g} %" if rate < 0.995 else "100 %"
