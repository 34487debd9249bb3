"""The views of a run's cells: `results.json` and the table shown at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from train.evaluation.cell_result import CellResult, DefectResult, Measured
from train.evaluation.metrics import METRICS, Metric, mean_and_standard_error

PerSeed = Sequence[float | None]

# What a trained detector would say without its localiser.
_UNTRAINED = "untrained"
_UNTRAINED_AUROC = "untrained_image_auroc"

# Letters in a line of a heading: as wide as most numbers below it.
_HEADING = 9


def summarise(cells: Sequence[CellResult], settings: Mapping[str, object]) -> dict[str, Any]:
    """The contents of `results.json`: dataset, categories, mean and settings, all plain JSON values.

    cells: of one data set. A category holds a list for threshold, each metric, each scorer and the flagged normals,
    with an entry per seed in the order of the cells; None in place of the list for a metric that needs masks and had
    none. `by_defect` holds the same of each class of defect, and `mean_of_defects` the mean over the classes, None
    where one lacks the metric: MVTec LOCO AD is compared by the mean of its two kinds of anomalies.

    `mean` holds, for each metric, the mean over categories of each category's mean over seeds, and under
    `standard_error` how much that mean varies with the seed: the mean over categories is taken for each seed by
    itself, and the standard error is of those. It is None for one seed, and where categories have different numbers
    of seeds. A category without the metric is left out of the mean, and `n_categories` says how many are in it; None
    if there is none. ValueError without a cell.
    """
    if not cells:
        raise ValueError("there is no category to summarise")
    names = dict.fromkeys(cell.category for cell in cells)
    categories = {name: _category([cell for cell in cells if cell.category == name]) for name in names}
    metrics = (*(metric.name for metric in METRICS), _UNTRAINED_AUROC)
    means = {name: over_categories([c[name] for c in categories.values()]) for name in metrics}
    mean: dict[str, Any] = {name: value for name, (value, _, _) in means.items()}
    mean["standard_error"] = {name: error for name, (_, error, _) in means.items()}
    mean["n_categories"] = {name: count for name, (_, _, count) in means.items()}
    scorers = dict.fromkeys(name for category in categories.values() for name in category["scorers"])
    lists = {name: [c["scorers"].get(name) for c in categories.values()] for name in scorers}
    mean["scorers"] = {name: over_categories(values)[0] for name, values in lists.items()}
    return {"dataset": cells[0].dataset, "categories": categories, "mean": mean, "settings": dict(settings)}


def results_table(cells: Sequence[CellResult]) -> Table | None:
    """Table of a run's cells: percent, mean ± standard error over seeds, "-" for what is missing.

    One row per category and the mean last; only categories and metrics that are measured, None where there are none.
    Below a category with two or more classes of defect there is a row per class, measured with all normals. A line
    below the table says where the trained network is worse than the untrained.
    """
    summary = summarise(cells, {})
    mean, first = summary["mean"], METRICS[0]
    headings = {first.name: first.title, _UNTRAINED_AUROC: "untrained", **{m.name: m.title for m in METRICS if m.shown}}
    columns = {metric: title for metric, title in headings.items() if mean["n_categories"][metric]}
    categories = {
        name: category
        for name, category in summary["categories"].items()
        if any(over_seeds(category[metric])[0] is not None for metric in columns)
    }
    if not categories:
        return None
    title = escape(f"{summary['dataset']}: percent, mean ± standard error over seeds")
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), caption_justify="left")
    several = any(len(category["by_defect"]) > 1 for category in categories.values())
    for heading in ("category", *["defect"] * several):
        table.add_column(heading, overflow="fold", min_width=len(heading))
    for heading in columns.values():
        # On a narrow terminal names are broken, numbers are not.
        table.add_column("\n".join(wrap(heading, _HEADING)), justify="right", no_wrap=True)
    worse = []
    for name, category in categories.items():
        metrics = {metric: over_seeds(category[metric]) for metric in headings}
        table.add_row(escape(name), *["all"] * several, *(percent(*metrics[metric]) for metric in columns))
        for defect, found in category["by_defect"].items() if len(category["by_defect"]) > 1 else ():
            shown = (percent(*over_seeds(found[metric])) if metric in found else "" for metric in columns)
            table.add_row("", escape(defect), *shown)
        if len(category["by_defect"]) > 1:
            means = category["mean_of_defects"]
            table.add_row("", "mean of these", *(percent(*over_seeds(means.get(metric))) for metric in columns))
        worse += _worse(name, metrics[first.name][0], metrics[_UNTRAINED_AUROC][0])
    count = f" in {len(worse)} of {len(categories)}"
    # Means over different categories say nothing about training.
    if mean["n_categories"][first.name] == mean["n_categories"][_UNTRAINED_AUROC]:
        worse += _worse("the mean", mean[first.name], mean[_UNTRAINED_AUROC])
    table.add_section()
    means = (percent(mean[metric], mean["standard_error"][metric]) for metric in columns)
    table.add_row("mean", *["all"] * several, *means)
    table.caption = escape(f"worse than untrained{count}: {', '.join(worse)}") if worse else None
    return table


def over_seeds(values: PerSeed | None) -> tuple[float | None, float | None]:
    """Mean over the seeds and its standard error; None where the metric is missing at a seed, or there is one seed."""
    defined = [value for value in values or () if value is not None]
    if not defined or len(defined) != len(values or ()):
        return None, None
    return mean_and_standard_error(defined)


def over_categories(per_category: Sequence[PerSeed | None]) -> tuple[float | None, float | None, int]:
    """Mean, its standard error over seeds, and how many of the categories have the metric at every seed."""
    measured = [values for values in per_category if over_seeds(values)[0] is not None]
    means = [mean for mean, _ in map(over_seeds, measured) if mean is not None]
    if not means:
        return None, None, 0
    same_seeds = len({len(values) for values in measured if values}) == 1
    by_seed = [sum(seed) / len(seed) for seed in zip(*measured, strict=True)] if same_seeds else []
    error = mean_and_standard_error(by_seed)[1] if by_seed else None
    return sum(means) / len(means), error, len(means)


def percent(mean: float | None, error: float | None, digits: int = 1) -> str:
    """Mean ± standard error in percent, only the mean where there is no error, "-" where there is no mean."""
    if mean is None:
        return "-"
    return f"{100 * mean:.{digits}f}" + ("" if error is None else f" ± {100 * error:.{digits}f}")


def _category(cells: Sequence[CellResult]) -> dict[str, Any]:
    """What `results.json` says of one category, from its cells."""
    names = dict.fromkeys(name for cell in cells for name in cell.scorers)
    scorers = {name: [cell.scorers.get(name) for cell in cells] for name in names}
    untrained = scorers.pop(_UNTRAINED, None)
    defects = {name: result.n for cell in cells for name, result in cell.by_defect.items()}
    nothing = DefectResult(0, {})
    by_defect: dict[str, dict[str, Any]] = {}
    for name, n in sorted(defects.items()):
        found = [cell.by_defect.get(name, nothing) for cell in cells]
        flagged = [result.n_flagged for result in found]
        by_defect[name] = {"n": n, "n_flagged": flagged, **_per_seed([result.metrics for result in found])}
    return {
        **_per_seed([cell.metrics for cell in cells]),
        _UNTRAINED_AUROC: untrained,
        "threshold": [cell.threshold for cell in cells],
        "false_positives": [None if cell.false_positives is None else cell.false_positives.rates for cell in cells],
        "n_train": cells[0].n_train,
        "n_test": cells[0].n_test,
        "n_normal": cells[0].n_normal,
        "n_flagged_normal": [cell.n_flagged_normal for cell in cells],
        "scorers": scorers,
        "by_defect": by_defect,
        "mean_of_defects": {m.name: _mean([found[m.name] for found in by_defect.values()]) for m in METRICS},
    }


def _mean(per_defect: Sequence[PerSeed | None]) -> PerSeed | None:
    """The mean over classes of defect, an entry per seed."""
    lists = [values for values in per_defect if values is not None]
    if not lists or len(lists) < len(per_defect):
        return None
    by_seed = [[value for value in seed if value is not None] for seed in zip(*lists, strict=True)]
    return [sum(values) / len(values) if len(values) == len(lists) else None for values in by_seed]


def _per_seed(measured: Sequence[Measured]) -> dict[str, PerSeed | None]:
    def values(metric: Metric) -> PerSeed | None:
        found = [one.get(metric.name) for one in measured]
        return None if metric.needs_masks and found.count(None) == len(found) else found

    return {metric.name: values(metric) for metric in METRICS}


def _worse(name: str, trained: float | None, untrained: float | None) -> list[str]:
    if trained is None or untrained is None or trained >= untrained:
        return []
    return [f"{name} by {100 * (untrained - trained):.1f}"]
