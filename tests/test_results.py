from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from train.evaluation.cell_result import CellResult, DefectResult
from train.evaluation.confusion import confusion_table
from train.evaluation.metrics import METRICS
from train.evaluation.results import results_table, summarise

NAMES = [metric.name for metric in METRICS]
UNMASKED = {metric.name: None for metric in METRICS if metric.needs_masks}


def cells(category: str, *aurocs: float | None, **changes: Any) -> list[CellResult]:
    """A cell for each image AUROC, with seeds from 0 on."""
    scorers = {"untrained": 0.85, "patches": 0.5}
    return [
        replace(
            CellResult("mvtec", category, seed, 320, 160, 3.25 + seed, dict.fromkeys(NAMES, 0.5), scorers),
            **{"metrics": {**dict.fromkeys(NAMES, 0.5), "image_auroc": auroc}, **changes},
        )
        for seed, auroc in enumerate(aurocs)
    ]


def unmarked(*aurocs: float | None, category: str = "tile", untrained: float | None = 0.9) -> list[CellResult]:
    """The same of a category without masks."""
    return [
        replace(cell, metrics={**cell.metrics, **UNMASKED}, scorers={"untrained": untrained})
        for cell in cells(category, *aurocs)
    ]


SCREW = cells("screw", 0.70, 0.80, 0.90)
TILE = unmarked(0.90, 1.00, 0.95)
CRACKED = {
    "crack": DefectResult(3, {"image_auroc": 0.25, "aupro": None}, 1),
    "spot": DefectResult(2, {"image_auroc": 1}),
}


def _summary() -> dict[str, Any]:
    return summarise([*SCREW, *TILE], {"steps": 100, "negatives": "cutswap"})


def _printed(cells: list[CellResult], width: int = 200, table: Any = results_table) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table(cells))
    return capture.get().splitlines()


def test_results_hold_the_agreed_keys_and_survive_json() -> None:
    summary = _summary()
    loaded = json.loads(json.dumps(summary, allow_nan=False))
    assert loaded == summary
    assert set(loaded) == {"dataset", "categories", "mean", "settings"}
    assert loaded["dataset"] == "mvtec"
    assert loaded["settings"] == {"steps": 100, "negatives": "cutswap"}
    screw, tile = loaded["categories"]["screw"], loaded["categories"]["tile"]
    agreed = {
        *NAMES,
        "threshold",
        "false_positives",
        "n_train",
        "n_test",
        "scorers",
        "untrained_image_auroc",
        "by_defect",
    }
    agreed |= {"mean_of_defects", "n_normal", "n_flagged_normal"}
    assert set(screw) == agreed
    assert screw["image_auroc"] == [0.70, 0.80, 0.90]
    assert (screw["threshold"], screw["n_train"], screw["n_test"]) == ([3.25, 4.25, 5.25], 320, 160)
    assert screw["scorers"] == {"patches": [0.5, 0.5, 0.5]}
    assert screw["untrained_image_auroc"] == [0.85, 0.85, 0.85]
    assert tile["pixel_auroc"] is tile["aupro"] is None
    assert screw["by_defect"] == {}


def test_every_metric_is_told_by_class_of_defect_and_seed() -> None:
    before = replace(TILE[0], by_defect={"spot": CRACKED["spot"]})
    tile = summarise([before, replace(TILE[1], by_defect=CRACKED)], {})["categories"]["tile"]
    found = tile["by_defect"]
    absent: dict[str, Any] = {name: [None, None] for name in NAMES} | UNMASKED
    assert tile["mean_of_defects"] == {**absent, "image_auroc": [None, 0.625]}
    assert found == {
        "crack": {"n": 3, "n_flagged": [None, 1], **absent, "image_auroc": [None, 0.25]},
        "spot": {"n": 2, "n_flagged": [None, None], **absent, "image_auroc": [1, 1]},
    }


def test_the_mean_is_over_categories_and_its_error_over_seeds() -> None:
    mean = _summary()["mean"]
    # By seed 0.80, 0.90, 0.925: their mean and their deviation over the root of 3.
    assert mean["image_auroc"] == pytest.approx(0.875)
    assert mean["standard_error"]["image_auroc"] == pytest.approx(0.0381881, abs=1e-6)
    assert mean["untrained_image_auroc"] == pytest.approx(0.875)
    assert mean["standard_error"]["untrained_image_auroc"] == pytest.approx(0)
    assert mean["scorers"] == pytest.approx({"patches": 0.5})


def test_a_category_without_a_figure_is_left_out_of_its_mean_and_counted() -> None:
    mean = _summary()["mean"]
    assert mean["pixel_auroc"] == pytest.approx(0.5)
    assert mean["n_categories"] == {
        **{metric.name: 1 if metric.needs_masks else 2 for metric in METRICS},
        "untrained_image_auroc": 2,
    }
    alone = summarise([replace(cell, scorers={}) for cell in unmarked(None, None)], {})
    assert alone["categories"]["tile"]["image_auroc"] == [None, None]
    assert alone["categories"]["tile"]["untrained_image_auroc"] is None
    assert alone["mean"]["image_auroc"] is alone["mean"]["aupro"] is None
    assert alone["mean"]["n_categories"]["image_auroc"] == 0


def test_categories_with_different_numbers_of_seeds_have_no_common_error() -> None:
    mean = summarise([*SCREW, *unmarked(0.5)], {})["mean"]
    assert mean["image_auroc"] == pytest.approx(0.65)
    assert mean["standard_error"]["image_auroc"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"image_auroc": float("nan")}}, "image_auroc must be in 0..1"),
        ({"metrics": {"image_auroc": 70.0}}, "image_auroc must be in 0..1"),
        ({"scorers": {"cells": 1.5}}, "scorer cells must be"),
        ({"by_defect": {"crack": DefectResult(3, {"aupro": -0.5})}}, "aupro of crack must be"),
        ({"threshold": float("inf")}, "threshold"),
        ({"n_normal": 3, "n_flagged_normal": 4}, "4 of 3 images cannot be flagged"),
        ({"by_defect": {"crack": DefectResult(3, {}, -1)}}, "-1 of 3 images cannot be flagged"),
    ],
)
def test_a_result_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SCREW[0], **changes)


@pytest.mark.parametrize(
    "cell",
    [SCREW[2], replace(TILE[1], by_defect=CRACKED), replace(TILE[0], metrics={}, n_normal=9, n_flagged_normal=0)],
)
def test_a_cell_survives_json(cell: CellResult) -> None:
    text = json.dumps(cell.to_json(), allow_nan=False)
    assert CellResult.from_json(json.loads(text), cell.dataset, cell.category, cell.seed) == cell


def test_a_cell_of_a_plain_folder_written_before_has_no_figures() -> None:
    cell = CellResult.from_json({"threshold": 1.5, "n_train": 4, "n_test": 0}, "folder", "pictures", 3)
    assert cell == CellResult("folder", "pictures", 3, 4, 0, 1.5)
    found = summarise([cell], {})["categories"]["pictures"]
    assert {name: found[name] for name in NAMES} == {name: [None] for name in NAMES} | UNMASKED
    assert results_table([cell]) is confusion_table([cell]) is None


def test_a_cell_written_before_a_metric_was_keeps_the_others() -> None:
    before = {"threshold": 1.5, "n_train": 4, "n_test": 7, "image_auroc": 0.75, "pixel_auroc": None}
    cell = CellResult.from_json(
        {**before, "by_defect": {"crack": {"n": 2, "image_auroc": 0.5}}}, "folder", "pictures", 3
    )
    assert cell.metrics == {"image_auroc": 0.75, "pixel_auroc": None} and cell.by_defect["crack"].n_flagged is None
    found = summarise([cell], {})
    assert found["categories"]["pictures"]["f1"] == [None] and found["mean"]["f1"] is None
    assert "75.0" in "".join(_printed([cell])) and " - " not in "".join(_printed([cell]))
    assert confusion_table([cell]) is None


def test_no_category_is_refused() -> None:
    with pytest.raises(ValueError, match="no category"):
        summarise([], {})


def test_the_table_shows_percent_and_dashes_and_says_where_training_lost() -> None:
    lines = _printed([*SCREW, *TILE])
    screw, tile, mean = (
        next(line for line in lines if line.startswith(f" {name} ")) for name in ("screw", "tile", "mean")
    )
    assert "80.0 ± 5.8" in screw
    assert "85.0 ± 0.0" in screw
    assert "95.0 ± 2.9" in tile
    assert tile.count(" - ") == 1  # AUPRO
    assert "87.5 ± 3.8" in mean
    assert "worse than untrained in 1 of 2: screw by 5.0" in "".join(lines) and "tile by" not in "".join(lines)
    assert lines.index(mean) > max(lines.index(screw), lines.index(tile))
    assert " all " not in "".join(lines)  # no column of defects


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_a_line_a_class_of_defect_where_there_are_several(width: int) -> None:
    cracked = [replace(cell, by_defect=CRACKED) for cell in SCREW]
    single = [replace(cell, by_defect={"[b]dent": DefectResult(1, {"image_auroc": 0.77})}) for cell in TILE]
    lines = _printed([*cracked, *single], width)
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for name, figure in (("crack", "25.0"), ("spot", "100.0"), ("mean of", "62.5")):
        (line,) = (line for line in lines if line.strip().startswith(name))
        assert figure in line
    assert "…" not in text and "dent" not in text  # its figure is the category's


def test_the_table_says_when_training_lost_on_the_mean() -> None:
    text = " ".join(" ".join(_printed([*SCREW, *unmarked(0.90, 1.00, 0.95, untrained=1.0)])).split())
    assert "worse than untrained in 2 of 2: screw by 5.0, tile by 5.0, the mean by 5.0" in text


def test_means_over_different_categories_are_not_compared() -> None:
    never_run = [replace(cell, scorers={}) for cell in unmarked(0.5, 0.5, 0.5, category="[bold]tile")]
    lines = _printed([*SCREW, *never_run])
    mean = next(line for line in lines if line.startswith(" mean "))
    assert "65.0" in mean
    assert "85.0" in mean
    assert "the mean by" not in "".join(lines)


def test_names_are_printed_as_they_are() -> None:
    assert any("[bold]tile" in line for line in _printed(unmarked(0.5, category="[bold]tile")))


def test_what_nothing_has_is_no_column_and_no_row() -> None:
    unseen = [CellResult("mvtec", "unseen", seed, 320, 0, 3.25) for seed in range(3)]
    lines = _printed([*TILE, *unseen])
    assert "AUPRO" not in "".join(lines) and "untrained" in "".join(lines)
    assert "unseen" not in "".join(lines) and not any(" - " in line for line in lines)
    never_trained = [replace(cell, scorers={}) for cell in TILE]
    assert "untrained" not in "".join(_printed(never_trained))


def test_the_widest_table_fits_a_terminal_of_120_columns() -> None:
    full = {"manipulated_front": DefectResult(24, dict.fromkeys(NAMES, 1.0)), "scratch": DefectResult(24, {})}
    wide = [
        replace(cell, metrics=dict.fromkeys(NAMES, value), by_defect=full, scorers={"untrained": value})
        for cell, value in zip(cells("magnetic_tile_and_more", 1, 1), (1.0, 0.5), strict=True)
    ]
    lines = _printed(wide, 120)
    text = "\n".join(lines)
    assert all(len(line) <= 120 for line in lines) and "…" not in text
    for name in ("magnetic_tile_and_more", "manipulated_front", "75.0 ± 25.0"):
        assert name in text


def flagged(category: str, *counts: tuple[int, int, int]) -> list[CellResult]:
    """A cell for each seed of 20 normals, 10 cracks and 5 spots, of which so many are flagged."""
    return [
        replace(
            cell,
            n_test=35,
            n_normal=20,
            n_flagged_normal=normal,
            by_defect={"crack": DefectResult(10, {}, crack), "[b]spot": DefectResult(5, {}, spot)},
        )
        for cell, (normal, crack, spot) in zip(cells(category, *[0.9] * len(counts)), counts, strict=True)
    ]


def _rows(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines if any(word.replace(".", "").isdigit() for word in line.split())]


def test_the_confusion_table_counts_test_images_by_class_of_defect() -> None:
    lines = _printed(flagged("screw", (3, 8, 0)), 80, confusion_table)
    assert _rows(lines) == [
        ["screw", "all", "17", "3", "8", "7"],
        ["crack", "8", "2"],
        ["[b]spot", "0", "5"],
    ]
    assert "test images at the threshold" in lines[0] and "seeds" not in lines[0]
    words = " ".join(" ".join(lines).split())
    assert "good good defects defects category defect kept flagged found missed" in words


def test_the_confusion_table_has_means_over_seeds_and_a_row_a_category() -> None:
    lines = _printed([*flagged("screw", (3, 8, 0), (2, 8, 1)), *SCREW], 80, confusion_table)
    assert "means over seeds" in lines[0]
    assert _rows(lines)[0] == ["screw", "all", "17.5", "2.5", "8.5", "6.5"]
    good = [CellResult("mvtec", "good_only", 0, 5, 4, 1.0, n_normal=4, n_flagged_normal=1)]
    one = [replace(cell, by_defect={"crack": DefectResult(15, {}, 9)}) for cell in flagged("tile", (0, 0, 0))]
    lines = _printed([*one, *good], 80, confusion_table)
    assert _rows(lines) == [["tile", "20", "0", "9", "6"], ["good_only", "3", "1"]]
