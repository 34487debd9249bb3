import csv
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from train.benchmark.comparison import Arms, compare, comparison_markdown, comparison_tables, read_rows, write_rows
from train.benchmark.comparison_plots import plot_comparison
from train.evaluation.cell_result import CellResult
from train.evaluation.metrics import METRICS
from train.run_folder import RunFolder

IMAGE_AUROC, AUPRO = (next(one for one in METRICS if one.name == name) for name in ("image_auroc", "aupro"))
CELL = CellResult("cells", "mono", 0, 57, 7, 1.5, {"image_ap": 0.6, "pixel_auroc": None, "aupro": None})


def cells(category: str, *values: float | None, dataset: str = "cells") -> list[CellResult]:
    """A cell for each image AUROC, with seeds from 0 on."""
    return [
        replace(CELL, dataset=dataset, category=category, seed=seed, metrics={"image_auroc": value, **CELL.metrics})
        for seed, value in enumerate(values)
    ]


UNTRAINED = [*cells("mono", 0.9, 0.9), *cells("poly", 0.7, 0.7)]
ARMS = {"untrained": UNTRAINED, "cutswap": [*cells("mono", 0.92, 0.96), *cells("poly", 0.80, 0.70)]}


def with_metrics(arms: Arms, **values: float | None) -> dict[str, list[CellResult]]:
    return {arm: [replace(cell, metrics={**cell.metrics, **values}) for cell in found] for arm, found in arms.items()}


def test_categories_by_arms_with_the_mean_by_seed_last() -> None:
    assert compare(ARMS, IMAGE_AUROC) == [
        ["category", "untrained", "cutswap"],
        ["mono", "90.00 ± 0.00", "94.00 ± 2.00"],
        ["poly", "70.00 ± 0.00", "75.00 ± 5.00"],
        # The means by seed are 86 and 83.
        ["mean", "80.00 ± 0.00", "84.50 ± 1.50"],
    ]


def test_one_seed_has_no_error_and_one_category_no_mean() -> None:
    assert compare({"cutswap": cells("mono", 0.92)}, IMAGE_AUROC) == [["category", "cutswap"], ["mono", "92.00"]]


def test_what_is_missing_is_a_dash_and_not_in_a_mean() -> None:
    missing = {**ARMS, "cutswap": cells("mono", 0.92, 0.96)}
    assert compare(missing, IMAGE_AUROC)[2:] == [["poly", "70.00 ± 0.00", "-"], ["mean", "80.00 ± 0.00", "-"]]
    undefined = {**ARMS, "cutswap": [*cells("mono", 0.92, 0.96), *cells("poly", 0.80, None)]}
    assert compare(undefined, IMAGE_AUROC)[2][2] == "-"


def test_a_score_of_zero_is_a_score() -> None:
    assert compare({"cutswap": cells("mono", 0.0)}, IMAGE_AUROC)[1] == ["mono", "0.00"]


def test_data_sets_keep_their_categories_apart() -> None:
    others = cells("mono", 0.5, dataset="others")
    table = compare({**ARMS, "cutswap": [*ARMS["cutswap"], *others]}, IMAGE_AUROC)
    assert [line[0] for line in table] == ["category", "cells: mono", "cells: poly", "others: mono", "mean"]
    assert table[3] == ["others: mono", "-", "50.00"] and table[4][1] == "-"


def test_figures_that_nothing_has_are_left_out() -> None:
    assert len(compare(ARMS, AUPRO)) == 1
    text = comparison_markdown(ARMS, level=3)
    assert "### Image AUROC, percent" in text and "AUPRO" not in text and "Pixel" not in text
    assert "| mean | 80.00 ± 0.00 | 84.50 ± 1.50 |" in text
    masked = comparison_markdown(with_metrics(ARMS, pixel_auroc=0.8, aupro=0.4), level=3)
    assert "### AUPRO, percent" in masked and "| mean | 40.00 ± 0.00 |" in masked


def test_the_terminal_shows_whole_names_and_figures() -> None:
    arms = {**ARMS, "cutpaste-3way": [*cells("mono", 0.123), *cells("poly", 0.123)]}
    console = Console(width=60)
    with console.capture() as capture:
        console.print(*comparison_tables(arms, "cells [quick]"))
    printed = capture.get()
    assert "…" not in printed and "cells [quick]: Image AUROC" in printed
    assert all(word in printed for word in ("cutpaste-", "3way", "12.30", "84.50"))


def test_a_line_a_cell_with_a_column_a_metric(tmp_path: Path) -> None:
    write_rows(tmp_path / "results.csv", ARMS)
    with (tmp_path / "results.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    figures = [metric.name for metric in METRICS]
    assert header == ["dataset", "category", "arm", "seed", *figures, "n_train", "n_test"]
    assert lines[0][:6] == ["cells", "mono", "untrained", "0", "0.9", "0.6"]
    assert set(lines[0][6:-2]) == {""} and lines[0][-2:] == ["57", "7"]
    assert [line[1:5] for line in lines[4:]] == [
        ["mono", "cutswap", "0", "0.92"],
        ["mono", "cutswap", "1", "0.96"],
        ["poly", "cutswap", "0", "0.8"],
        ["poly", "cutswap", "1", "0.7"],
    ]


def written(folder: Path, arms: Arms, labels: tuple[int, ...] = ()) -> None:
    """The run folders of the arms, with the scores of some test images."""
    for arm, found in arms.items():
        for result in found:
            cell = RunFolder(folder / arm).cell(result.category, result.seed)
            cell.path.mkdir(parents=True)
            cell.write(result)
            lines = [f"{i}.png,{label},{result.seed + i}" for i, label in enumerate(labels)]
            cell.scores.write_text("\n".join(["path,label,score", *lines]))


def test_the_cells_that_the_table_lists_are_read_from_their_run_folders(tmp_path: Path) -> None:
    written(tmp_path, {**ARMS, "cutpaste": UNTRAINED})
    write_rows(tmp_path / "results.csv", ARMS)
    assert read_rows(tmp_path / "results.csv") == ARMS


@pytest.mark.parametrize("labels", [(0, 1, 0, 1), (0, 0, 0, 0)])
def test_plots_of_what_there_is(tmp_path: Path, labels: tuple[int, ...]) -> None:
    arms = ARMS if any(labels) else with_metrics(ARMS, image_auroc=None)
    written(tmp_path, arms, labels)
    paths = plot_comparison(tmp_path, arms, "a note")
    assert [path.name for path in paths] == ["bars.png", "roc.png", "histograms.png"]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 200
