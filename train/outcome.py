"""What `train` says of each detector in the end: its threshold, what that rests on, and the normals to look at."""

from __future__ import annotations

from collections.abc import Sequence

from train.cell_folder import CellFolder
from train.evaluation.cell_result import CellResult
from train.evaluation.confusion import count_defects
from train.threshold import DECIMALS, ENOUGH, FalsePositives, normals_for

# Normals that are named as the most unlike the others.
_WORST = 3


def threshold_line(threshold: float, found: FalsePositives, asked: float, what: str = "held-out normals") -> str:
    """In a sentence a threshold, what it rests on, and what it takes to keep the rate that was asked for.

    what: the plural of what was counted.
    """
    line = f"threshold {threshold:.{DECIMALS}f}: {rests_on(found, what)}"
    if found.estimate > asked:
        line += f"; for {_percent(asked)} give {normals_for(asked)}"
    return f"{line}; with fewer than {ENOUGH}, any threshold is a guess" if found.normals < ENOUGH else line


def rests_on(found: FalsePositives, what: str) -> str:
    """What a threshold rests on, and the rate of false positives to expect."""
    above, count = found.above, found.normals
    place = f"{above} of {count} {what} are above it" if above else f"the highest of {count} {what}"
    return f"{place}; expect {_percent(found.estimate)} false alarms, at most {_percent(found.high)} (95 %)"


def outcome_lines(cells: Sequence[tuple[CellFolder, CellResult]], asked: float) -> list[str]:
    """Lines per finished cell: its threshold, what that finds, and the normals that are most unlike the others.

    asked: the rate of false positives that the thresholds are for.
    """
    lines = []
    for folder, cell in cells:
        name = f"{cell.category} seed {cell.seed}"
        if cell.false_positives is not None:
            lines.append(f"{name}: {threshold_line(cell.threshold, cell.false_positives, asked)}")
        if cell.n_normal is not None:
            defects, found = count_defects(cell.by_defect.values())
            flagged = f"{cell.n_flagged_normal} of {cell.n_normal} good ones"
            lines.append(f"{name}: it finds {found} of {defects} test images with a defect, and flags {flagged}")
        if worst := folder.read_normals(_WORST):
            named = ", ".join(f"{path} ({score:.{DECIMALS}f})" for path, score in worst)
            lines.append(f"{name}: the normals most unlike the others: {named}; all in {folder.normals}")
    return lines


def _percent(rate: float) -> str:
    return f"{100 * rate:.2g} %" if rate < 0.995 else "100 %"
