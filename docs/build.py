"""Write docs/results.md from the run folders below runs/benchmark and runs, and from their caches: `make docs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pipeline as pipeline  # first: repairs torchvision where its compiled part does not fit torch
from train.benchmark.arms import QUICK
from train.benchmark.comparison import comparison_markdown, markdown, read_rows
from train.benchmark.environment import describe_environment
from train.evaluation.cell_result import CellResult
from train.evaluation.metrics import METRICS
from train.evaluation.results import over_seeds, percent
from train.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[1]
COLUMNS = {METRICS[0].name: METRICS[0].title, "untrained_image_auroc": "untrained"}
COLUMNS |= {metric.name: metric.title for metric in METRICS[1:]}
SHOWN = (
    "image_size",
    "backbone",
    "negatives",
    "steps",
    "batch_size",
    "crop",
    "head_lr",
    "backbone_lr",
    "scorer",
    "seeds",
)

HEAD = """\
# Results

`make docs` writes this page from the files that `benchmark` wrote; each section names its command, which writes its
tables again. `inspect` without `--verify` prints the values under "Maps of". MVTec AD (here only the category screw,
shrunk to 512 px) was in `data/mvtec`; the magnetic tile defects and KolektorSDD (squeezed to a square), both in the
layout of MVTec AD, were in `data/folder`.

`docs/method.md`, "Metrics", says what each metric is. All values are percent, mean ± standard error over seeds. For a
mean over categories, the mean is first taken for each seed; the error is the standard error of those means. The last
checkpoint is the one that is scored, and nothing is chosen by test images (`docs/method.md` says which defaults were
chosen after test metrics had been seen). The arms that train a localiser differ only in their negatives: all have the
same recipe, the same number of steps and of images per step. Every arm is fitted to the same normals, without those
held out for thresholds.

Masks: a pixel of a mask that shrinks is a defect if any of its source pixels is (`docs/data.md`). Up to commit 2f428f2
the pixel at the centre was taken. Of the arm untrained with seed 0 that changed AUPRO and pixel AUROC, in percent, from
89.6 and 97.5 to 89.6 and 97.5 on screw, from 43.9 and 81.5 to 56.8 and 80.2 on kolektor, whose cracks are thin, and
from 72.8 and 77.8 to 73.4 and 78.0 on magnetic_tile.

- untrained: nothing is trained; the score is the Gaussian and the nearest whitened patches of the other arms.
- cutswap, random-swap, cutpaste, cutpaste-scar, cutpaste-3way, mix: see `docs/method.md`, "Arms".
- finetuned: the backbone itself learns normals against negatives; see `docs/method.md`, "Arms".
- patchcore, patchcore-whitened: nothing is trained; see `docs/method.md`, "PatchCore".

An arm without a column here has not been measured with this version.
"""


def main() -> None:
    """Write docs/results.md, or say that there is nothing to write it from."""
    runs, out = REPOSITORY / "runs", REPOSITORY / "docs" / "results.md"
    benchmarks = benchmark_folders(runs / "benchmark")
    if not benchmarks:
        sys.exit("no runs/benchmark/*/results.csv: run `cli.py benchmark` first (docs/results.md has the commands)")
    arms = [results for folder in benchmarks for results in results_below(folder).values()]
    others = results_below(runs)
    sections = [HEAD, all_of(benchmarks), scorers_of(benchmarks), chosen_by_others(benchmarks)]
    sections += [(folder / "results.md").read_text() for folder in benchmarks]
    if others:
        sections += [
            f"## Other runs\n\n{describe_environment()}\n",
            *(section(name, run) for name, run in others.items()),
        ]
    stores = dict.fromkeys(run["settings"]["store"] for run in [*arms, *others.values()])
    sections += [f"## Maps of {store}\n\n{maps_of(store)}\n" for store in stores]
    out.write_text("\n".join(sections))


def benchmark_folders(folder: Path) -> list[Path]:
    """The folders that `benchmark` wrote, by name; quick looks are left out, since they measure nothing."""
    found = [path.parent for path in sorted(folder.glob("*/results.csv"))]
    return [path for path in found if QUICK not in (path / "results.md").read_text()]


def results_below(folder: Path) -> dict[str, dict[str, Any]]:
    """The contents of `results.json` of each run folder directly below, by name."""
    runs = [RunFolder(path) for path in sorted(folder.iterdir())]
    return {run.path.name: json.loads(run.results.read_text()) for run in runs if run.results.exists()}


def all_of(benchmarks: list[Path]) -> str:
    """The categories of all data sets in one table per metric, with the mean over them."""
    arms: dict[str, list[CellResult]] = {}
    for folder in benchmarks:
        for arm, cells in read_rows(folder / "results.csv").items():
            arms.setdefault(arm, []).extend(cells)
    return f"## All data sets\n\n{comparison_markdown(arms, level=3)}"


def scorers(benchmarks: list[Path]) -> dict[str, dict[str, list[float]]]:
    """Image AUROC of every scorer of the arm `cutswap`, per seed, by category."""
    found = {}
    for folder in benchmarks:
        arm = results_below(folder).get("cutswap", {"categories": {}})
        for category, values in arm["categories"].items():
            found[category] = {**values["scorers"], "without the localiser": values["untrained_image_auroc"]}
    return found


def chosen_by_others(benchmarks: list[Path]) -> str:
    """Image AUROC of each category with the deciding scorer that the other categories would have chosen."""
    found = scorers(benchmarks)
    if len(found) < 2:
        return ""
    means = {c: {name: fmean(v) for name, v in aurocs.items()} for c, aurocs in found.items()}
    names = [name for name in next(iter(means.values())) if name != "without the localiser"]
    rows = []
    for category, own in means.items():
        others = [aurocs for name, aurocs in means.items() if name != category]
        chosen = max(names, key=lambda name: fmean(aurocs[name] for aurocs in others))
        rows.append([category, chosen, of_seeds(found[category][chosen]), max(names, key=own.__getitem__)])
    table = markdown([["category", "chosen by the others", "its image AUROC", "best, seen its own tests"], *rows])
    said = "Which scorer decides is chosen by the mean over the others."
    return f"## Each category by the choice of the others\n\n{said}\n\n{table}\n"


def scorers_of(benchmarks: list[Path]) -> str:
    """Image AUROC of every scorer of the arm `cutswap`, and next to them what it would be without its localiser."""
    found = scorers(benchmarks)
    header = ["category", *(next(iter(found.values())) if found else ())]
    rows = [[category, *map(of_seeds, aurocs.values())] for category, aurocs in found.items()]
    if not rows:
        return ""
    where = '`docs/method.md`, "The score"'
    return f"## Scorers of the arm cutswap\n\nImage AUROC ({where}).\n\n{markdown([header, *rows])}\n"


def section(name: str, results: dict[str, Any]) -> str:
    """A table of one run: a row per category, percent, mean ± standard error over its seeds."""
    settings = {**results["settings"]["cache"], **results["settings"]}
    # A run of an earlier version lacks some of them.
    described = "; ".join(f"{key.replace('_', ' ')} {settings[key]}" for key in SHOWN if key in settings)
    others = dict.fromkeys(name for values in results["categories"].values() for name in values["scorers"])
    measured = {
        key: title
        for key, title in COLUMNS.items()
        if any(over_seeds(values.get(key))[0] is not None for values in results["categories"].values())
    }
    header = ["category", "normals", "test images", *measured.values(), *others]
    rows = [
        [
            category,
            str(values["n_train"]),
            str(values["n_test"]),
            *(of_seeds(values.get(key)) for key in measured),
            *(of_seeds(values["scorers"].get(name)) for name in others),
        ]
        for category, values in results["categories"].items()
    ]
    return f"### {name}\n\n{described}.\n\n{markdown([header, *rows])}\n"


def maps_of(store: str) -> str:
    """The table that `inspect` prints of the cache's maps: a row per category and stage."""
    from pipeline.cache.summary import summarise

    header = ["category", "stage", "top cluster, percent of the map", "centroids", "relaxed pairs, percent"]
    rows = [
        [
            category.name,
            stage.name,
            f"{100 * (stage.top_share or 0):.1f}",
            ", ".join(f"{value:.2f}" for value in stage.centroids or ()),
            f"{100 * (stage.relaxed_share or 0):.1f}",
        ]
        for category in summarise(store).categories
        for stage in category.stages
    ]
    return markdown([header, *rows])


def of_seeds(values: Sequence[float | None] | None) -> str:
    """Mean ± standard error of a metric over all seeds, "-" where one is missing."""
    return percent(*over_seeds(values), 2)


if __name__ == "__main__":
    main()
