"""Arms against each other: a line per cell, and tables of mean and standard error over seeds, categories by arms."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from pipeline.files import write_csv
from train.evaluation.cell_result import CellResult
from train.evaluation.metrics import METRICS, Metric
from train.evaluation.results import PerSeed, over_categories, over_seeds, percent
from train.run_folder import RunFolder

# The cells of each arm.
Arms = Mapping[str, Sequence[CellResult]]
# The header first.
Cells = list[list[str]]

# Drawn where there are test images.
FIGURES = ("bars.png", "roc.png", "histograms.png")

_NAMES = [metric.name for metric in METRICS]


def arm_folder(benchmark: Path, arm: str) -> RunFolder:
    """The run folder of an arm, in a benchmark's."""
    return RunFolder(benchmark / arm)


def write_rows(path: Path, arms: Arms) -> None:
    """Write `results.csv`, atomically: a line per category, arm and seed, an empty field for None."""
    header = ["dataset", "category", "arm", "seed", *_NAMES, "n_train", "n_test"]
    rows = [
        [cell.dataset, cell.category, arm, cell.seed, *map(cell.metrics.get, _NAMES), cell.n_train, cell.n_test]
        for arm, cells in arms.items()
        for cell in cells
    ]
    write_csv(path, [header, *rows])


def read_rows(path: Path) -> dict[str, list[CellResult]]:
    """The cells that a benchmark's `results.csv` lists, from the run folders of its arms, in the same folder."""
    arms: dict[str, list[CellResult]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            cell = arm_folder(path.parent, line["arm"]).cell(line["category"], int(line["seed"]))
            arms.setdefault(line["arm"], []).append(cell.read(line["dataset"]))
    return arms


def compare(arms: Arms, metric: Metric) -> Cells:
    """Percent, mean ± standard error over seeds: a row per category that has the metric, a column per arm; mean last.

    Only the header where no category has it. The mean over categories is taken for each seed by itself, and its error
    is that of those means. "-" where a cell is missing, and in the mean of an arm that lacks a category.
    """
    values: dict[tuple[str, str], dict[str, list[float | None]]] = {}
    for arm, cells in arms.items():
        for cell in cells:
            of_arm = values.setdefault((cell.dataset, cell.category), {}).setdefault(arm, [])
            of_arm.append(cell.metrics.get(metric.name))
    measured = {
        place: by_arm
        for place, by_arm in values.items()
        if any(over_seeds(found)[0] is not None for found in by_arm.values())
    }
    several = len({dataset for dataset, _ in measured}) > 1
    table = [["category", *arms]]
    for (dataset, category), by_arm in measured.items():
        name = f"{dataset}: {category}" if several else category
        table.append([name, *(percent(*over_seeds(by_arm.get(arm)), 2) for arm in arms)])
    if len(measured) > 1:
        table.append(["mean", *(_mean([by_arm.get(arm) for by_arm in measured.values()]) for arm in arms)])
    return table


def comparison_tables(arms: Arms, title: str) -> list[Table]:
    """For the terminal: a table of each metric that is shown and was measured."""
    tables = []
    for heading, (header, *body) in _measured(arms, [metric for metric in METRICS if metric.shown]):
        table = Table(title=escape(f"{title}: {heading}"))
        for column in header:
            justify: Literal["left", "right"] = "left" if column == "category" else "right"
            # Folded at its hyphens, so that a narrow terminal shows the whole name.
            table.add_column(escape(column.replace("-", "-\n")), justify=justify, overflow="fold")
        for line in body:
            if line[0] == "mean":
                table.add_section()
            table.add_row(*map(escape, line))
        tables.append(table)
    return tables


def comparison_markdown(arms: Arms, level: int) -> str:
    """As Markdown a table of each metric that was measured, under a heading of that level."""
    return "\n".join(f"{'#' * level} {heading}\n\n{markdown(table)}\n" for heading, table in _measured(arms, METRICS))


def markdown(table: Cells) -> str:
    """Rows, the header first, as a Markdown table."""
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _measured(arms: Arms, metrics: Sequence[Metric]) -> Iterator[tuple[str, Cells]]:
    """Heading and table of each of the metrics that some category has."""
    for metric in metrics:
        table = compare(arms, metric)
        if len(table) > 1:
            title = metric.title[0].upper() + metric.title[1:]
            yield f"{title}, percent, mean ± standard error over seeds", table


def _mean(per_category: Sequence[PerSeed | None]) -> str:
    mean, error, count = over_categories(per_category)
    return percent(mean, error, 2) if count == len(per_category) else "-"
