"""Arms against each other: a row a cell, and tables of mean and standard error over seeds, categories by arms."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from pipeline.files import write_text
from train.results import PerSeed, over_categories, over_seeds

FIGURES = {"image_auroc": "Image AUROC", "image_ap": "Image AP", "pixel_auroc": "Pixel AUROC", "aupro": "AUPRO"}

# The header first.
Cells = list[list[str]]


@dataclass(frozen=True)
class CellRow:
    """What one category, arm and seed came to; figures in 0..1, None where not defined or not measured."""

    dataset: str
    category: str
    arm: str
    seed: int
    image_auroc: float | None
    image_ap: float | None
    pixel_auroc: float | None
    aupro: float | None
    n_train: int
    n_test: int


def rows_of(arm: str, summary: Mapping[str, Any]) -> list[CellRow]:
    """The rows of one arm, from what its `results.json` holds."""
    rows = []
    for name, category in summary["categories"].items():
        counts = {count: category[count] for count in ("n_train", "n_test")}
        for i, seed in enumerate(summary["settings"]["seeds"]):
            figures = {figure: category[figure] and category[figure][i] for figure in FIGURES}
            rows.append(CellRow(summary["dataset"], name, arm, seed, **counts, **figures))
    return rows


def write_rows(path: Path, rows: Sequence[CellRow]) -> None:
    """Write `results.csv`, atomically: a line a cell, an empty field for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(CellRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[CellRow]:
    """The inverse of `write_rows`."""
    with path.open(newline="") as file:
        return [_row(line) for line in csv.DictReader(file)]


def compare(rows: Sequence[CellRow], figure: str) -> Cells:
    """Percent, mean ± standard error over seeds: a row a category that has the figure, a column an arm; the mean last.

    Only the header where no category has it. The mean over categories is taken for each seed by itself, and its error
    is that of those means. "-" where a cell is missing, and in the mean of an arm that lacks a category.
    """
    arms = list(dict.fromkeys(row.arm for row in rows))
    values: dict[tuple[str, str], dict[str, list[float | None]]] = {}
    for row in rows:
        values.setdefault((row.dataset, row.category), {}).setdefault(row.arm, []).append(getattr(row, figure))
    measured = {
        place: by_arm
        for place, by_arm in values.items()
        if any(over_seeds(found)[0] is not None for found in by_arm.values())
    }
    several = len({dataset for dataset, _ in measured}) > 1
    table = [["category", *arms]]
    for (dataset, category), by_arm in measured.items():
        name = f"{dataset}: {category}" if several else category
        table.append([name, *(_percent(*over_seeds(by_arm.get(arm))) for arm in arms)])
    if len(measured) > 1:
        table.append(["mean", *(_mean([by_arm.get(arm) for by_arm in measured.values()]) for arm in arms)])
    return table


def comparison_tables(rows: Sequence[CellRow], title: str) -> list[Table]:
    """For the terminal: a table of each figure that was measured."""
    tables = []
    for figure, name in FIGURES.items():
        header, *body = compare(rows, figure)
        if not body:
            continue
        table = Table(title=escape(f"{title}: {name}, percent, mean ± standard error over seeds"))
        for heading in header:
            justify: Literal["left", "right"] = "left" if heading == "category" else "right"
            # Folded at its hyphens, so that a narrow terminal shows the whole name.
            table.add_column(escape(heading.replace("-", "-\n")), justify=justify, overflow="fold")
        for line in body:
            if line[0] == "mean":
                table.add_section()
            table.add_row(*map(escape, line))
        tables.append(table)
    return tables


def comparison_markdown(rows: Sequence[CellRow], level: int) -> str:
    """The same as Markdown, each under a heading of that level."""
    parts = []
    for figure, name in FIGURES.items():
        table = compare(rows, figure)
        if len(table) > 1:
            parts.append(f"{'#' * level} {name}, percent, mean ± standard error over seeds\n\n{markdown(table)}\n")
    return "\n".join(parts)


def markdown(table: Cells) -> str:
    """Rows, the header first, as a Markdown table."""
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _mean(per_category: Sequence[PerSeed | None]) -> str:
    mean, error, count = over_categories(per_category)
    return _percent(mean, error) if count == len(per_category) else "-"


def _percent(mean: float | None, error: float | None) -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:.2f}" if error is None else f"{100 * mean:.2f} ± {100 * error:.2f}"


def _row(line: Mapping[str, str]) -> CellRow:
    figures = {figure: float(line[figure]) if line[figure] else None for figure in FIGURES}
    return CellRow(
        line["dataset"],
        line["category"],
        line["arm"],
        int(line["seed"]),
        n_train=int(line["n_train"]),
        n_test=int(line["n_test"]),
        **figures,
    )
