"""Plots of arms against each other: a bar per arm and category, ROC curves, histograms of the scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from pipeline.files import replacing
from pipeline.views.drawing import drawable
from train.benchmark.comparison import Arms, arm_folder
from train.evaluation.cell_result import CellResult
from train.evaluation.metrics import METRICS
from train.evaluation.results import over_seeds
from train.views.plots import histogram

_COLUMNS = 4
_RATES = np.linspace(0, 1, 201)


def plot_comparison(folder: Path, arms: Arms, note: str) -> list[Path]:
    """Write bars.png, roc.png and histograms.png to a benchmark's folder, from it and its arms' `scores.csv`.

    note: put into every title. Categories without two labels to tell apart have no ROC curve.
    """
    colours = {arm: f"C{i}" for i, arm in enumerate(arms)}
    drawn = {
        "bars.png": _bars(arms, colours, note),
        "roc.png": _roc_curves(folder, arms, colours, note),
        "histograms.png": _histograms(folder, arms, note),
    }
    for name, figure in drawn.items():
        with replacing(folder / name) as file:
            figure.savefig(file, format="png", dpi=100)
    return [folder / name for name in drawn]


def _bars(arms: Arms, colours: dict[str, str], note: str) -> Figure:
    categories = _categories(arms)
    figure = Figure(figsize=(max(8, 3 + len(categories) * (0.4 + 0.25 * len(colours))), 4.5), layout="constrained")
    axes = figure.subplots()
    lowest, metric = 100.0, METRICS[0]
    for i, (arm, colour) in enumerate(colours.items()):
        for x, category in enumerate(categories):
            cells = [cell.metrics.get(metric.name) for cell in arms[arm] if cell.category == category]
            mean, error = over_seeds(cells)
            if mean is not None:
                place = x + (i - (len(colours) - 1) / 2) * 0.8 / len(colours)
                axes.bar(place, 100 * mean, 0.8 / len(colours), yerr=100 * (error or 0), color=colour)
                lowest = min(lowest, 100 * mean)
    axes.set_xticks(range(len(categories)), [*map(drawable, categories)], rotation=30 if len(categories) > 4 else 0)
    # Bars of 70 to 99 percent from 0 on would all look alike; the axis says where it starts.
    axes.set(
        ylim=(max(0, lowest - 5), 101), ylabel=f"{metric.title}, percent", title="mean and standard error over seeds"
    )
    handles = [Patch(color=colour, label=arm) for arm, colour in colours.items()]
    figure.legend(handles=handles, loc="outside right center", fontsize=8)
    figure.suptitle(note, fontsize=9)
    return figure


def _roc_curves(folder: Path, arms: Arms, colours: dict[str, str], note: str) -> Figure:
    categories = _categories(arms)
    figure, panels = _grid(len(categories), min(_COLUMNS, len(categories)))
    for axes, category in zip(panels, categories, strict=False):
        for arm, colour in colours.items():
            found = [_scores(folder, arm, cell) for cell in arms[arm] if cell.category == category and cell.n_test]
            curves = [_roc(labels, scores) for labels, scores in found if 0 < labels.sum() < len(labels)]
            if curves:
                axes.plot(_RATES, np.mean(curves, 0), color=colour, label=arm)
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
        axes.set(title=drawable(category), xlabel="false positive rate", ylabel="true positive rate")
        if len(axes.get_lines()) > 1:
            axes.legend(fontsize=7)
    figure.suptitle(f"ROC, mean over seeds\n{note}".strip(), fontsize=9)
    return figure


def _histograms(folder: Path, arms: Arms, note: str) -> Figure:
    first = min(cell.seed for cells in arms.values() for cell in cells)
    shown = [(cell, arm) for arm, cells in arms.items() for cell in cells if cell.seed == first and cell.n_test]
    figure, panels = _grid(len(shown), len(arms))
    for axes, (cell, arm) in zip(panels, sorted(shown, key=lambda one: one[0].category), strict=False):
        labels, scores = _scores(folder, arm, cell)
        histogram(axes, labels, scores, 30)
        axes.set_title(f"{drawable(cell.category)}: {arm}", fontsize=9)
        axes.tick_params(labelsize=7)
    if shown:
        panels[0].legend(fontsize=7)
    figure.suptitle(f"anomaly scores of the test images, seed {first}\n{note}".strip(), fontsize=9)
    return figure


def _grid(panels: int, columns: int) -> tuple[Figure, list[Axes]]:
    columns = max(1, columns)
    lines = max(1, math.ceil(panels / columns))
    figure = Figure(figsize=(3.2 * columns, 0.6 + 2.8 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for unused in axes[panels:]:
        unused.set_axis_off()
    return figure, axes


def _roc(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    false_positives, true_positives, _ = roc_curve(labels, scores)
    return np.asarray(np.interp(_RATES, false_positives, true_positives), np.float64)


def _scores(benchmark: Path, arm: str, cell: CellResult) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels (N,) and scores (N,) of a cell's test images."""
    return arm_folder(benchmark, arm).cell(cell.category, cell.seed).read_scores()


def _categories(arms: Arms) -> list[str]:
    return list(dict.fromkeys(cell.category for cells in arms.values() for cell in cells))
