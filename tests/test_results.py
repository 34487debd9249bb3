from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from train.results import (
    CategoryResult,
    ScoreRow,
    results_table,
    summarise,
    write_scores_csv,
)

SCREW = CategoryResult(
    image_auroc=[0.70, 0.80, 0.90],
    image_ap=[0.6, 0.7, 0.8],
    pixel_auroc=[0.91, 0.92, 0.93],
    aupro=[0.5, 0.5, 0.5],
    threshold=3.25,
    n_train=320,
    n_test=160,
    scorers={"gaussian": [0.70, 0.80, 0.90], "k-nearest": [0.5, 0.5, 0.5]},
    untrained_image_auroc=[0.85],
    untrained={"gaussian": [0.85]},
)
TILE = replace(
    SCREW,
    image_auroc=[0.90, 1.00, 0.95],
    pixel_auroc=None,
    aupro=None,
    scorers={"gaussian": [0.90, 1.00, 0.95]},
    untrained_image_auroc=[0.9],
    untrained={"gaussian": [0.9]},
)


def _summary() -> dict[str, Any]:
    return summarise("mvtec", {"screw": SCREW, "tile": TILE}, {"steps": 100, "negatives": "cutswap"})


def _printed(summary: dict[str, Any]) -> list[str]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(results_table(summary))
    return capture.get().splitlines()


def test_results_hold_the_agreed_keys_and_survive_json() -> None:
    summary = _summary()
    loaded = json.loads(json.dumps(summary, allow_nan=False))
    assert loaded == summary
    assert set(loaded) == {"dataset", "categories", "mean", "settings"}
    assert loaded["dataset"] == "mvtec"
    assert loaded["settings"] == {"steps": 100, "negatives": "cutswap"}
    screw, tile = loaded["categories"]["screw"], loaded["categories"]["tile"]
    agreed = {"image_auroc", "image_ap", "pixel_auroc", "aupro", "threshold", "n_train", "n_test"}
    assert agreed <= set(screw)
    assert screw["image_auroc"] == [0.70, 0.80, 0.90]
    assert (screw["threshold"], screw["n_train"], screw["n_test"]) == (3.25, 320, 160)
    assert screw["scorers"]["k-nearest"] == [0.5, 0.5, 0.5]
    assert screw["untrained"] == {"gaussian": [0.85]}
    assert tile["pixel_auroc"] is None
    assert tile["aupro"] is None


def test_the_mean_is_over_categories_and_its_error_over_seeds() -> None:
    mean = _summary()["mean"]
    # By seed 0.80, 0.90, 0.925: their mean and their deviation over the root of 3.
    assert mean["image_auroc"] == pytest.approx(0.875)
    assert mean["standard_error"]["image_auroc"] == pytest.approx(0.0381881, abs=1e-6)
    assert mean["untrained_image_auroc"] == pytest.approx(0.875)
    assert mean["standard_error"]["untrained_image_auroc"] is None
    assert mean["scorers"] == pytest.approx({"gaussian": 0.875, "k-nearest": 0.5})
    assert mean["untrained"] == pytest.approx({"gaussian": 0.875})


def test_a_category_without_a_figure_is_left_out_of_its_mean_and_counted() -> None:
    mean = _summary()["mean"]
    assert mean["pixel_auroc"] == pytest.approx(0.92)
    assert mean["n_categories"] == {
        "image_auroc": 2,
        "image_ap": 2,
        "pixel_auroc": 1,
        "aupro": 1,
        "untrained_image_auroc": 2,
    }
    undefined = replace(TILE, image_auroc=[None] * 3, scorers={}, untrained_image_auroc=None, untrained={})
    alone = summarise("folder", {"tile": undefined}, {})["mean"]
    assert alone["image_auroc"] is None
    assert alone["aupro"] is None
    assert alone["n_categories"]["image_auroc"] == 0


def test_categories_with_different_numbers_of_seeds_have_no_common_error() -> None:
    short = replace(TILE, image_auroc=[0.5], image_ap=[0.5], scorers={})
    mean = summarise("mvtec", {"screw": SCREW, "tile": short}, {})["mean"]
    assert mean["image_auroc"] == pytest.approx(0.65)
    assert mean["standard_error"]["image_auroc"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_auroc": [0.7, 0.8, float("nan")]}, "image_auroc must be in 0..1"),
        ({"image_auroc": [70.0, 80.0, 90.0]}, "image_auroc must be in 0..1"),
        ({"untrained": {"gaussian": [1.5]}}, "untrained gaussian must be"),
        ({"scorers": {"gaussian": [0.5]}}, "one entry a seed"),
        ({"aupro": []}, "one entry a seed"),
        ({"threshold": float("inf")}, "threshold"),
    ],
)
def test_a_result_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SCREW, **changes)


def test_no_category_is_refused() -> None:
    with pytest.raises(ValueError, match="no category"):
        summarise("mvtec", {}, {})


def test_scores_are_read_back_exactly(tmp_path: Path) -> None:
    rows = [
        ScoreRow("test/good/0, a.png", 0, 0.1 + 0.2, {"gaussian": 1e-17, "k-nearest": 2.0}),
        ScoreRow('test/crack/"ä".png', 1, 3.5, {"k-nearest": -4.0, "gaussian": 1 / 3}),
    ]
    write_scores_csv(tmp_path / "scores.csv", rows)
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["path", "label", "score", "gaussian", "k-nearest"]
    for row, (path, label, score, gaussian, nearest) in zip(rows, lines, strict=True):
        assert (path, int(label), float(score)) == (row.path, row.label, row.score)
        assert {"gaussian": float(gaussian), "k-nearest": float(nearest)} == row.scorers


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ScoreRow("a", 0, float("nan"))], "not finite"),
        ([ScoreRow("a", 0, 1.0, {"score": 1.0})], "name of a column"),
        ([ScoreRow("a", 0, 1.0, {"head": 1.0}), ScoreRow("b", 0, 1.0)], "b has the scorers"),
    ],
)
def test_score_rows_that_do_not_fit_leave_the_old_file(tmp_path: Path, rows: list[ScoreRow], message: str) -> None:
    path = tmp_path / "scores.csv"
    write_scores_csv(path, [])
    assert path.read_text(encoding="utf-8") == "path,label,score\n"
    with pytest.raises(ValueError, match=message):
        write_scores_csv(path, rows)
    assert path.read_text(encoding="utf-8") == "path,label,score\n"


def test_the_table_shows_percent_and_dashes_and_says_where_training_lost() -> None:
    lines = _printed(_summary())
    screw, tile, mean = (
        next(line for line in lines if line.startswith(f"│ {name} ")) for name in ("screw", "tile", "mean")
    )
    assert "80.0 ± 5.8" in screw
    assert "85.0" in screw
    assert "worse than untrained by 5.0" in screw
    assert "95.0 ± 2.9" in tile
    assert tile.count(" - ") == 2
    assert "worse" not in tile
    assert "87.5 ± 3.8" in mean
    assert "worse in 1 of 2" in mean
    assert lines.index(mean) > max(lines.index(screw), lines.index(tile))


def test_the_table_says_when_training_lost_on_the_mean() -> None:
    better_before = replace(TILE, untrained_image_auroc=[1.0])
    mean = _printed(summarise("mvtec", {"screw": SCREW, "tile": better_before}, {}))[-2]
    assert "worse than untrained by 5.0; worse in 2 of 2" in mean


def test_means_over_different_categories_are_not_compared() -> None:
    never_run = replace(TILE, untrained_image_auroc=None, image_auroc=[0.5, 0.5, 0.5], scorers={})
    mean = _printed(summarise("mvtec", {"screw": SCREW, "[bold]tile": never_run}, {}))[-2]
    assert "65.0" in mean
    assert "85.0" in mean
    assert "worse than untrained" not in mean


def test_names_are_printed_as_they_are() -> None:
    assert any("[bold]tile" in line for line in _printed(summarise("mvtec", {"[bold]tile": TILE}, {})))
