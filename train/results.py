"""What a training run writes down: `results.json`, `scores.csv`, and the table shown at its end."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.files import write_text
from train.metrics import mean_and_standard_error

PerSeed = Sequence[float | None]

_FIGURES = ("image_auroc", "image_ap", "pixel_auroc", "aupro", "untrained_image_auroc")
_OWN_COLUMNS = ("path", "label", "score")


@dataclass(frozen=True)
class CategoryResult:
    """Figures in 0..1 of one category, each a list with one entry a seed, in the order of the seeds.

    An entry of None: not defined, such as the AUROC of a test set without anomalies. A figure of None: not
    measured, such as AUPRO without masks. `image_auroc` is that of the default scorer and `scorers` holds all
    by name; `untrained_image_auroc` and `untrained` are the same for the network before training, whose lists
    may be of another length. `threshold` is on the scale of the image score, `n_train` and `n_test` count
    images. ValueError for a figure outside 0..1, no seed, or lists of unequal length.
    """

    image_auroc: PerSeed
    image_ap: PerSeed
    pixel_auroc: PerSeed | None
    aupro: PerSeed | None
    threshold: float
    n_train: int
    n_test: int
    scorers: Mapping[str, PerSeed] = field(default_factory=dict)
    untrained_image_auroc: PerSeed | None = None
    untrained: Mapping[str, PerSeed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {name: getattr(self, name) for name in _FIGURES}
        named |= {f"scorers {name}": values for name, values in self.scorers.items()}
        untrained = {f"untrained {name}": values for name, values in self.untrained.items()}
        for name, values in (named | untrained).items():
            if any(value is not None and not 0 <= value <= 1 for value in values or ()):
                raise ValueError(f"{name} must be in 0..1, got {list(values)}")
        named.pop("untrained_image_auroc")
        lengths = {name: len(values) for name, values in named.items() if values is not None}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"every figure needs one entry a seed, got {lengths}")
        if not math.isfinite(self.threshold):
            raise ValueError(f"the threshold must be finite, got {self.threshold}")


@dataclass(frozen=True)
class ScoreRow:
    """One test image: path, label (1 anomalous, 0 normal), default score, and the score of each scorer."""

    path: str
    label: int
    score: float
    scorers: Mapping[str, float] = field(default_factory=dict)


def summarise(
    dataset: str, per_category: Mapping[str, CategoryResult], settings: Mapping[str, object]
) -> dict[str, Any]:
    """The contents of `results.json`: dataset, categories, mean and settings, all plain JSON values.

    `mean` holds, for each figure, the mean over categories of each category's mean over seeds, and under
    `standard_error` how much that mean varies with the seed: the mean over categories is taken for each seed
    by itself, and the standard error is of those. It is None for one seed, and where categories have
    different numbers of seeds. A category without the figure is left out of the mean, and `n_categories`
    says how many are in it; None if there is none. ValueError without a category.
    """
    if not per_category:
        raise ValueError("there is no category to summarise")
    categories = {name: _plain(result) for name, result in per_category.items()}
    means = {figure: over_categories([c[figure] for c in categories.values()]) for figure in _FIGURES}
    mean: dict[str, Any] = {figure: value for figure, (value, _, _) in means.items()}
    mean["standard_error"] = {figure: error for figure, (_, error, _) in means.items()}
    mean["n_categories"] = {figure: count for figure, (_, _, count) in means.items()}
    for arm in ("scorers", "untrained"):
        names = dict.fromkeys(name for category in categories.values() for name in category[arm])
        lists = {name: [c[arm].get(name) for c in categories.values()] for name in names}
        mean[arm] = {name: over_categories(values)[0] for name, values in lists.items()}
    return {"dataset": dataset, "categories": categories, "mean": mean, "settings": dict(settings)}


def write_scores_csv(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Write `scores.csv`, atomically: columns path, label, score, then one for each scorer of the rows.

    ValueError for a score that is not finite, rows with different scorers, or a scorer named as a column.
    """
    scorers = tuple(rows[0].scorers) if rows else ()
    if clash := set(scorers) & set(_OWN_COLUMNS):
        raise ValueError(f"a scorer cannot have the name of a column: {', '.join(sorted(clash))}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_OWN_COLUMNS, *scorers))
    for row in rows:
        if set(row.scorers) != set(scorers):
            raise ValueError(f"{row.path} has the scorers {sorted(row.scorers)}, not {sorted(scorers)}")
        scores = [float(row.score), *(float(row.scorers[name]) for name in scorers)]
        if not all(map(math.isfinite, scores)):
            raise ValueError(f"{row.path} has a score that is not finite")
        writer.writerow((row.path, int(row.label), *scores))
    write_text(path, text.getvalue())


def results_table(summary: Mapping[str, Any]) -> Table:
    """Table of what `summarise` gave: percent, mean ± standard error over seeds, "-" for what is missing.

    One row a category and the mean last; the note says where the trained network is worse than the untrained.
    """
    table = Table(title=escape(f"{summary['dataset']}: percent, mean ± standard error over seeds"))
    table.add_column("category")
    for heading in ("image AUROC", "untrained", "image AP", "pixel AUROC", "AUPRO"):
        table.add_column(heading, justify="right")
    table.add_column("note")
    columns = ("image_auroc", "untrained_image_auroc", "image_ap", "pixel_auroc", "aupro")
    worse = 0
    for name, category in summary["categories"].items():
        cells = {figure: over_seeds(category[figure]) for figure in columns}
        note = _worse(cells["image_auroc"][0], cells["untrained_image_auroc"][0])
        worse += bool(note)
        table.add_row(escape(name), *(_percent(*cells[figure]) for figure in columns), note)
    mean, notes = summary["mean"], []
    # Means over different categories say nothing about training.
    if mean["n_categories"]["image_auroc"] == mean["n_categories"]["untrained_image_auroc"]:
        notes.append(_worse(mean["image_auroc"], mean["untrained_image_auroc"]))
    notes.append(f"worse in {worse} of {len(summary['categories'])}" if worse else "")
    table.add_section()
    shown = (_percent(mean[figure], mean["standard_error"][figure]) for figure in columns)
    table.add_row("mean", *shown, "; ".join(filter(None, notes)))
    return table


def _plain(result: CategoryResult) -> dict[str, Any]:
    plain: dict[str, Any] = {name: _floats(getattr(result, name)) for name in _FIGURES}
    plain |= {
        "threshold": float(result.threshold),
        "n_train": int(result.n_train),
        "n_test": int(result.n_test),
    }
    plain["scorers"] = {name: _floats(values) for name, values in result.scorers.items()}
    plain["untrained"] = {name: _floats(values) for name, values in result.untrained.items()}
    return plain


def _floats(values: PerSeed | None) -> list[float | None] | None:
    return None if values is None else [None if value is None else float(value) for value in values]


def over_seeds(values: PerSeed | None) -> tuple[float | None, float | None]:
    """Mean over the seeds and its standard error; None where the figure is missing at a seed, or there is one seed."""
    defined = [value for value in values or () if value is not None]
    if not defined or len(defined) != len(values or ()):
        return None, None
    return mean_and_standard_error(defined)


def over_categories(per_category: Sequence[PerSeed | None]) -> tuple[float | None, float | None, int]:
    """Mean, its standard error over seeds, and how many of the categories have the figure at every seed."""
    measured = [values for values in per_category if over_seeds(values)[0] is not None]
    means = [mean for mean, _ in map(over_seeds, measured) if mean is not None]
    if not means:
        return None, None, 0
    same_seeds = len({len(values) for values in measured if values}) == 1
    by_seed = [sum(seed) / len(seed) for seed in zip(*measured, strict=True)] if same_seeds else []
    error = mean_and_standard_error(by_seed)[1] if by_seed else None
    return sum(means) / len(means), error, len(means)


def _percent(mean: float | None, error: float | None) -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" if error is None else f"{100 * mean:.1f} ± {100 * error:.1f}"


def _worse(trained: float | None, untrained: float | None) -> str:
    if trained is None or untrained is None or trained >= untrained:
        return ""
    return f"worse than untrained by {100 * (untrained - trained):.1f}"
