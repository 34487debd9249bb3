import csv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO

from pipeline.data.samples import Sample
from pipeline.errors import UserError
from train.evaluation.cell_result import CellResult, DefectResult
from train.run_folder import CellFolder, RunFolder, find_detector

WANTED: dict[str, Any] = {"train": {"steps": 5, "negatives": "mix"}, "cache": {"pairs": 16}, "images": {"mono": "1f"}}
RESULT = CellResult(
    "cells", "mono", 3, 57, 7, 1.5, {"image_auroc": 0.5}, {"largest": 0.5}, {"crack": DefectResult(3, {})}
)


def changed(part: str, **values: object) -> dict[str, Any]:
    return {**WANTED, part: {**WANTED[part], **values}}


# --- cells --------------------------------------------------------------------------------------------------------


def test_a_cell_is_finished_by_its_result_and_read_back(tmp_path: Path) -> None:
    cell = RunFolder(tmp_path).cell("mono", 3)
    assert cell == CellFolder(tmp_path / "mono/seed-3") and not cell.finished
    cell.clear(keep_checkpoint=False)
    assert not cell.finished
    cell.write(RESULT)
    assert cell.finished and cell.read("cells") == RESULT
    assert list(RunFolder(tmp_path).cells()) == [cell]


def test_a_cell_is_cleared_of_every_file_but_the_checkpoint_and_log_that_are_kept(tmp_path: Path) -> None:
    cell = RunFolder(tmp_path).cell("mono", 3)
    cell.clear(keep_checkpoint=False)
    cell.write(RESULT)
    for path in (cell.checkpoint, cell.log, cell.detector, cell.scores, cell.scores_plot, cell.maps_plot):
        path.touch()
    cell.clear(keep_checkpoint=True)
    assert {path.name for path in cell.path.iterdir()} == {"checkpoint.pt", "log.csv"}
    cell.clear(keep_checkpoint=False)
    assert not list(cell.path.iterdir())


def test_a_cell_written_by_an_earlier_version_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(REPO / "tests/old/run-091a564.zip") as archive:
        archive.extractall(tmp_path)
    (cell,) = RunFolder(tmp_path / "run").cells()
    found = cell.read("elpv")
    assert (found.dataset, found.category, found.seed) == ("elpv", "mono", 0)
    assert (found.n_train, found.n_test, found.threshold) == (57, 7, 4.331290649863506)
    assert found.metrics == {"image_auroc": 1.0, "image_ap": 1.0, "pixel_auroc": None, "aupro": None}
    assert found.scorers["patches"] == 0.9166666666666666 and found.by_defect == {}
    assert find_detector(tmp_path / "run") == cell.detector and cell.scores.is_file()


def test_scores_are_read_back_exactly(tmp_path: Path) -> None:
    cell = RunFolder(tmp_path).cell("mono", 3)
    samples = [Sample("test/good/0, a.png", 0, "good", ()), Sample('test/crack/"ä".png', 1, "crack", ())]
    score = np.array([0.1 + 0.2, 1e-17])
    scorers = {"gaussian": np.array([1e-17, 1 / 3]), "patches": np.array([2.0, -4e22])}
    cell.write_scores(samples, score, scorers)
    with cell.scores.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["path", "label", "score", "gaussian", "patches"]
    assert [(path, int(label)) for path, label, *_ in lines] == [(sample.path, sample.label) for sample in samples]
    written = np.array([values for _, _, *values in lines], np.float64)
    np.testing.assert_array_equal(written, np.stack([score, *scorers.values()], 1))
    for found, expected in zip(cell.read_scores(), ([0, 1], score), strict=True):
        np.testing.assert_array_equal(found, expected)


# --- settings -----------------------------------------------------------------------------------------------------


def test_settings_differ_by_name_and_an_empty_folder_differs_from_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.differing(WANTED) == []
    run.keep(WANTED)
    assert run.differing(WANTED) == []
    assert run.differing(changed("train", steps=6)) == ["train.steps: 5, not 6"]
    assert run.differing(changed("cache", clusters=4)) == ["cache.clusters: None, not 4"]
    assert run.differing(changed("images", mono="2f")) == ["images.mono: 1f, not 2f"]


def test_a_new_category_joins_and_what_is_finished_stays(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.keep(WANTED)
    run.cell("mono", 3).clear(keep_checkpoint=False)
    run.cell("mono", 3).write(RESULT)
    poly = {**WANTED, "images": {"poly": "3f"}}
    assert run.differing(poly) == []
    run.keep(poly)
    assert run.cell("mono", 3).finished
    assert run.differing(changed("images", mono="2f")) == ["images.mono: 1f, not 2f"]


def test_other_settings_take_results_and_checkpoints_of_all_cells(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.keep(WANTED)
    for cell in (run.cell("mono", 3), run.cell("poly", 0)):
        cell.clear(keep_checkpoint=False)
        cell.write(RESULT)
        cell.checkpoint.touch()
        cell.detector.touch()
    other = changed("train", steps=6)
    run.keep(other)
    assert run.differing(other) == []
    assert {path.name for path in tmp_path.glob("*/*/*")} == {"detector.pt"}


# --- which detector -----------------------------------------------------------------------------------------------


def detectors(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / "detector.pt").touch()
    return root


@pytest.mark.parametrize("given", ["", "poly", "poly/seed-2", "poly/seed-2/detector.pt"])
def test_a_run_a_category_a_seed_or_a_file_may_be_given(given: str, tmp_path: Path) -> None:
    run = detectors(tmp_path / "run", "poly/seed-10", "poly/seed-2")
    assert find_detector(run / given) == run / "poly/seed-2/detector.pt"


@pytest.mark.parametrize("name", ["seed-3", "copied-detector", "x", "seed-3 (copy)"])
def test_a_copied_seed_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    assert find_detector(detectors(tmp_path, name) / name) == tmp_path / name / "detector.pt"


def test_a_seed_folder_beside_its_copy_is_taken(tmp_path: Path) -> None:
    run = detectors(tmp_path, "seed-1", "seed-1-old", "seed-old")
    assert find_detector(run).parent.name in {"seed-1", "seed-1-old", "seed-old"}


def test_a_run_of_several_categories_is_refused(tmp_path: Path) -> None:
    run = detectors(tmp_path, "poly/seed-0", "mono/seed-0", "mono/seed-1")
    with pytest.raises(UserError) as caught:
        find_detector(run)
    assert str(run / "mono") in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_a_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no detector") as caught:
        find_detector(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_run_whose_arm_kept_no_detector_says_so(tmp_path: Path) -> None:
    cell = RunFolder(tmp_path).cell("mono", 0)
    cell.clear(keep_checkpoint=False)
    cell.write(RESULT)
    with pytest.raises(UserError, match="kept no detector of this arm: train it again") as caught:
        find_detector(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
