import csv
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from train.comparison import CellRow, compare, comparison_markdown, comparison_tables, read_rows, write_rows
from train.comparison_plots import plot_comparison

CELL = CellRow("cells", "mono", "untrained", 0, 0.5, 0.6, None, None, 57, 7)


def cell(category: str, arm: str, seed: int, value: float | None, dataset: str = "cells") -> CellRow:
    return replace(CELL, dataset=dataset, category=category, arm=arm, seed=seed, image_auroc=value)


ROWS = [
    *(cell("mono", "untrained", seed, 0.9) for seed in (0, 1)),
    *(cell("poly", "untrained", seed, 0.7) for seed in (0, 1)),
    *(cell("mono", "cutswap", seed, value) for seed, value in ((0, 0.92), (1, 0.96))),
    *(cell("poly", "cutswap", seed, value) for seed, value in ((0, 0.80), (1, 0.70))),
]


def test_categories_by_arms_with_the_mean_by_seed_last() -> None:
    assert compare(ROWS, "image_auroc") == [
        ["category", "untrained", "cutswap"],
        ["mono", "90.00 ± 0.00", "94.00 ± 2.00"],
        ["poly", "70.00 ± 0.00", "75.00 ± 5.00"],
        # The means by seed are 86 and 83.
        ["mean", "80.00 ± 0.00", "84.50 ± 1.50"],
    ]


def test_one_seed_has_no_error_and_one_category_no_mean() -> None:
    assert compare([ROWS[4]], "image_auroc") == [["category", "cutswap"], ["mono", "92.00"]]


def test_what_is_missing_is_a_dash_and_not_in_a_mean() -> None:
    assert compare(ROWS[:6], "image_auroc")[2:] == [["poly", "70.00 ± 0.00", "-"], ["mean", "80.00 ± 0.00", "-"]]
    assert compare([*ROWS[:7], cell("poly", "cutswap", 1, None)], "image_auroc")[2][2] == "-"


def test_a_score_of_zero_is_a_score() -> None:
    assert compare([cell("mono", "cutswap", 0, 0.0)], "image_auroc")[1] == ["mono", "0.00"]


def test_data_sets_keep_their_categories_apart() -> None:
    table = compare([*ROWS, cell("mono", "cutswap", 0, 0.5, "others")], "image_auroc")
    assert [line[0] for line in table] == ["category", "cells: mono", "cells: poly", "others: mono", "mean"]
    assert table[3] == ["others: mono", "-", "50.00"] and table[4][1] == "-"


def test_figures_that_nothing_has_are_left_out() -> None:
    assert len(compare(ROWS, "aupro")) == 1
    text = comparison_markdown(ROWS, level=3)
    assert "### Image AUROC, percent" in text and "AUPRO" not in text and "Pixel" not in text
    assert "| mean | 80.00 ± 0.00 | 84.50 ± 1.50 |" in text
    masked = [replace(row, pixel_auroc=0.8, aupro=0.4) for row in ROWS]
    assert "### AUPRO, percent" in comparison_markdown(masked, level=3)


def test_the_terminal_shows_whole_names_and_figures() -> None:
    rows = [*ROWS, *(cell(name, "cutpaste-3way", 0, 0.123) for name in ("mono", "poly"))]
    console = Console(width=60)
    with console.capture() as capture:
        console.print(*comparison_tables(rows, "cells [quick]"))
    printed = capture.get()
    assert "…" not in printed and "cells [quick]: Image AUROC" in printed
    assert all(word in printed for word in ("cutpaste-", "3way", "12.30", "84.50"))


def test_rows_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_rows(path, ROWS)
    assert read_rows(path) == ROWS
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0])[:5] == ["dataset", "category", "arm", "seed", "image_auroc"]
    assert (lines[0]["aupro"], lines[4]["image_auroc"]) == ("", "0.92")


@pytest.mark.parametrize("labels", [(0, 1, 0, 1), (0, 0, 0, 0)])
def test_plots_of_what_there_is(tmp_path: Path, labels: tuple[int, ...]) -> None:
    rows = ROWS if any(labels) else [replace(row, image_auroc=None) for row in ROWS]
    for row in rows:
        folder = tmp_path / row.arm / row.category / f"seed-{row.seed}"
        folder.mkdir(parents=True)
        lines = [f"{i}.png,{label},{row.seed + i}" for i, label in enumerate(labels)]
        (folder / "scores.csv").write_text("\n".join(["path,label,score", *lines]))
    paths = plot_comparison(tmp_path, rows, "a note")
    assert [path.name for path in paths] == ["bars.png", "roc.png", "histograms.png"]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 200
