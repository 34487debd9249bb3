"""How many test images detectors flag at their thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from train.evaluation.cell_result import CellResult, DefectResult


def confusion_table(cells: Sequence[CellResult]) -> Table | None:
    """Test images kept and flagged by a run's cells: a row per category, and per class of defect where it has several.

    Of several seeds the means. Cells without counts are left out: those without test images, and those of earlier
    versions. None where no cell has any.
    """
    counted = [cell for cell in cells if cell.n_normal is not None and cell.n_flagged_normal is not None]
    if not counted:
        return None
    several_seeds = len({cell.seed for cell in counted}) > 1
    several = any(len(cell.by_defect) > 1 for cell in counted)
    title = "test images at the threshold" + ", means over seeds" * several_seeds
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("category", *["defect"] * several):
        table.add_column(heading, overflow="fold", min_width=len(heading))
    for heading in ("good kept", "good flagged", "defects found", "defects missed"):
        # On a narrow terminal names are broken, numbers are not.
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for name in dict.fromkeys(cell.category for cell in counted):
        own = [cell for cell in counted if cell.category == name]
        flagged, kept = _means([(cell.n_normal or 0, cell.n_flagged_normal or 0) for cell in own])
        found, missed = _means([count_defects(cell.by_defect.values()) for cell in own])
        table.add_row(escape(name), *["all"] * several, kept, flagged, found, missed)
        classes = list(dict.fromkeys(defect for cell in own for defect in cell.by_defect))
        for defect in classes if len(classes) > 1 else ():
            of_class = [count_defects([cell.by_defect[defect]]) for cell in own if defect in cell.by_defect]
            table.add_row("", escape(defect), "", "", *_means(of_class))
    return table


def count_defects(results: Iterable[DefectResult]) -> tuple[int, int]:
    """How many defects there are in all, and how many of them are flagged."""
    counts = [(result.n, result.n_flagged or 0) for result in results]
    return sum(n for n, _ in counts), sum(flagged for _, flagged in counts)


def _means(counts: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """Of how many images there are and are flagged at each seed: the mean of those flagged, and of the others.

    Empty where there are none.
    """
    if not any(n for n, _ in counts):
        return "", ""
    flagged, others = fmean(flagged for _, flagged in counts), fmean(n - flagged for n, flagged in counts)
    return f"{flagged:.1f}".removesuffix(".0"), f"{others:.1f}".removesuffix(".0")
