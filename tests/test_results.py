from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from train.evaluation.cell_result import CellResult, DefectResult
from train.evaluation.metrics import METRICS
from train.evaluation.results import results_table, summarise

NAMES = [metric.name for metric in METRICS]


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
        replace(cell, metrics={**cell.metrics, "pixel_auroc": None, "aupro": None}, scorers={"untrained": untrained})
        for cell in cells(category, *aurocs)
    ]


SCREW = cells("screw", 0.70, 0.80, 0.90)
TILE = unmarked(0.90, 1.00, 0.95)
CRACKED = {"crack": DefectResult(3, {"image_auroc": 0.25, "aupro": None}), "spot": DefectResult(2, {"image_auroc": 1})}


def _summary() -> dict[str, Any]:
    return summarise([*SCREW, *TILE], {"steps": 100, "negatives": "cutswap"})


def _printed(cells: list[CellResult], width: int = 200) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(results_table(cells))
    return capture.get().splitlines()


def test_results_hold_the_agreed_keys_and_survive_json() -> None:
    summary = _summary()
    loaded = json.loads(json.dumps(summary, allow_nan=False))
    assert loaded == summary
    assert set(loaded) == {"dataset", "categories", "mean", "settings"}
    assert loaded["dataset"] == "mvtec"
    assert loaded["settings"] == {"steps": 100, "negatives": "cutswap"}
    screw, tile = loaded["categories"]["screw"], loaded["categories"]["tile"]
    agreed = {*NAMES, "threshold", "n_train", "n_test", "scorers", "untrained_image_auroc", "by_defect"}
    agreed.add("mean_of_defects")
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
    assert tile["mean_of_defects"] == {"image_auroc": [None, 0.625], **dict.fromkeys(("pixel_auroc", "aupro"))} | {
        "image_ap": [None, None]
    }
    absent = {"image_ap": [None, None], "pixel_auroc": None, "aupro": None}
    assert found == {
        "crack": {"n": 3, "image_auroc": [None, 0.25], **absent},
        "spot": {"n": 2, "image_auroc": [1, 1], **absent},
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
        "image_auroc": 2,
        "image_ap": 2,
        "pixel_auroc": 1,
        "aupro": 1,
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
    ],
)
def test_a_result_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SCREW[0], **changes)


@pytest.mark.parametrize("cell", [SCREW[2], replace(TILE[1], by_defect=CRACKED), replace(TILE[0], metrics={})])
def test_a_cell_survives_json(cell: CellResult) -> None:
    text = json.dumps(cell.to_json(), allow_nan=False)
    assert CellResult.from_json(json.loads(text), cell.dataset, cell.category, cell.seed) == cell


def test_a_cell_of_a_plain_folder_written_before_has_no_figures() -> None:
    cell = CellResult.from_json({"threshold": 1.5, "n_train": 4, "n_test": 0}, "folder", "pictures", 3)
    assert cell == CellResult("folder", "pictures", 3, 4, 0, 1.5)
    found = summarise([cell], {})["categories"]["pictures"]
    assert [found[name] for name in NAMES] == [[None], [None], None, None]


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
    assert tile.count(" - ") == 2
    assert "87.5 ± 3.8" in mean
    assert "worse than untrained in 1 of 2: screw by 5.0" in "".join(lines) and "tile by" not in "".join(lines)
    assert lines.index(mean) > max(lines.index(screw), lines.index(tile))
    assert "defect" not in "".join(lines)


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
