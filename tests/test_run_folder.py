import csv
import json
import os
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO

from pipeline.data.samples import Sample
from pipeline.errors import UserError
from train.cell_folder import CellFolder
from train.evaluation.cell_result import CellResult, DefectResult
from train.made_of import Files, MadeOf
from train.run_folder import RunFolder, find_detector

MADE_OF = MadeOf.of({"train": {"steps": 5, "crop": (1, 2)}, "cache": {"pairs": 16}}, {"masks": Files.of([("a", "1f")])})
OTHER = MadeOf.of({"train": {"steps": 6}}, {"masks": Files.of([])})
RESULT = CellResult(
    "cells", "mono", 3, 57, 7, 1.5, {"image_auroc": 0.5}, {"largest": 0.5}, {"crack": DefectResult(3, {})}
)


# --- cells --------------------------------------------------------------------------------------------------------


def begun(run: Path, made_of: MadeOf = MADE_OF) -> CellFolder:
    cell = RunFolder(run).cell("mono", 3).partial
    cell.begin(made_of)
    return cell


def finish(run: Path, made_of: MadeOf = MADE_OF) -> CellFolder:
    """A cell that has taken its place, and whose detector tells what it was made of."""
    begun(run, made_of).write(RESULT)
    cell = RunFolder(run).cell("mono", 3)
    cell.partial.detector.write_text(str(made_of.settings["train.steps"]))
    cell.partial.take_place_of(cell)
    return cell


def test_a_cell_takes_its_place_when_it_is_whole_and_is_read_back(tmp_path: Path) -> None:
    cell, run = RunFolder(tmp_path).cell("mono", 3), RunFolder(tmp_path)
    assert cell == CellFolder(tmp_path / "mono/seed-3") and not cell.finished and not run.exists
    assert begun(tmp_path).path == tmp_path / "mono/partial-seed-3" and cell.partial.seed == cell.seed == 3
    assert list(run.cells()) == [] and not cell.finished
    cell.partial.write(RESULT)
    cell.partial.take_place_of(cell)
    assert cell.finished and cell.read("cells") == RESULT and not cell.partial.path.exists() and run.exists
    assert list(run.cells()) == [cell] and cell.changes(MADE_OF) == []


def test_what_was_begun_stays_only_if_it_is_made_of_the_same(tmp_path: Path) -> None:
    cell = begun(tmp_path)
    cell.checkpoint.touch()
    begun(tmp_path)
    assert {path.name for path in cell.path.iterdir()} == {"checkpoint.pt", "made_of.json"}
    begun(tmp_path, OTHER)
    assert {path.name for path in cell.path.iterdir()} == {"made_of.json"} and cell.changes(OTHER) == []


def test_a_cell_that_is_replaced_goes_at_once_and_files_of_others_stay(tmp_path: Path) -> None:
    cell = finish(tmp_path)
    (cell.path / "notes of mine.txt").write_text("good parts of Monday")
    cell.log.touch()
    assert finish(tmp_path, OTHER) == cell
    assert {path.name for path in cell.path.iterdir()} == {
        "cell.json",
        "detector.pt",
        "made_of.json",
        "notes of mine.txt",
    }
    assert cell.detector.read_text() == "6" and [path.name for path in (tmp_path / "mono").iterdir()] == ["seed-3"]


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_killed_while_it_replaced_a_cell_is_put_right(tmp_path: Path, moved: bool) -> None:
    cell = finish(tmp_path)
    cell.path.rename(tmp_path / "mono/old-seed-3")
    if moved:
        finish(tmp_path, OTHER)
    with RunFolder(tmp_path).owned():
        assert cell.detector.read_text() == ("6" if moved else "5")
        assert not (tmp_path / "mono/old-seed-3").exists()


def test_changes_are_told_in_words() -> None:
    assert (
        MADE_OF.changes(MADE_OF) == MADE_OF.changes(MadeOf.from_json(json.loads(json.dumps(MADE_OF.to_json())))) == []
    )
    assert OTHER.changes(MADE_OF) == [
        "cache.pairs: None now, 16 then",
        "train.crop: None now, [1, 2] then",
        "train.steps: 6 now, 5 then",
        "0 masks now, 1 then",
    ]
    for others in ([("a", "2f")], [("b", "1f")]):
        other = replace(MADE_OF, files={"masks": Files.of(others)})
        assert other.changes(MADE_OF) == ["1 masks as then, with other content, names or order"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"settings": 1}', "\0\0", "[" * 10**5])
def test_a_damaged_file_of_a_cell_is_one_line(tmp_path: Path, content: str) -> None:
    cell = finish(tmp_path)
    for file in (cell.made_of, cell.result, cell.scores):
        file.write_text(content)
    assert cell.changes(MADE_OF) == ["made_of.json is damaged"]
    with pytest.raises(UserError, match="damaged: make the cell again with --overwrite") as caught:
        cell.read("cells")
    assert str(cell.result) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["detector.pt", "scores.csv", "cell.json"])
def test_a_finished_cell_whose_files_are_gone_or_changed_is_damaged(tmp_path: Path, file: str) -> None:
    cell = begun(tmp_path)
    cell.detector.write_text("weights")
    cell.scores.write_text("scores")
    cell.write(RESULT)
    cell.refuse_damage("cells")
    whole = (cell.path / file).read_bytes()
    changes = [whole.replace(b"0.5", b"0.9")] if file == "cell.json" else [b"", whole + b"x"]
    for content in changes:
        (cell.path / file).write_bytes(content)
        with pytest.raises(UserError, match=f"{file} is .*damaged: make the cell again with --overwrite"):
            cell.refuse_damage("cells")
    (cell.path / file).unlink()
    if file != "cell.json":
        with pytest.raises(UserError, match=f"{file} is gone"):
            cell.refuse_damage("cells")


def test_a_folder_in_the_place_of_a_file_is_damage(tmp_path: Path) -> None:
    cell = finish(tmp_path)
    for file in (cell.made_of, cell.result):
        file.unlink()
        file.mkdir()
    assert cell.changes(MADE_OF) == ["made_of.json is damaged"]
    with pytest.raises(UserError, match="damaged"):
        cell.read("cells")


def test_a_damaged_table_of_scores_is_one_line(tmp_path: Path) -> None:
    cell = finish(tmp_path)
    for content in (b"path,label\na,1", b"path,label,score\na,1,high", b"\xff\xfe"):
        cell.scores.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            cell.read_scores()


# --- one owner ----------------------------------------------------------------------------------------------------


def test_a_second_owner_is_told_who_the_first_is(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.owned():
        command = (
            "import sys; from pathlib import Path; from train.run_folder import RunFolder\n"
            "with RunFolder(Path(sys.argv[1])).owned(): pass"
        )
        second = subprocess.run(
            [sys.executable, "-c", command, run.path], cwd=REPO, capture_output=True, text=True, timeout=60
        )
        assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in second.stderr.splitlines()[-1]
    with run.owned():
        pass


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
    cell = begun(tmp_path)
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


@pytest.mark.parametrize("copy", ["seed-1.bak", "seed-0 (copy)", "seed-old", "seed--1", "seed-1-old"])
def test_a_copy_beside_a_seed_folder_is_not_taken(tmp_path: Path, copy: str) -> None:
    run = detectors(tmp_path / "run", "mono/seed-1", f"mono/{copy}")
    assert find_detector(run) == run / "mono/seed-1/detector.pt"
    assert [cell.path.name for cell in RunFolder(run).cells()] == ["seed-1"]


def test_a_category_that_is_hidden_does_not_give_its_place_to_another(tmp_path: Path) -> None:
    run = detectors(tmp_path / "run", "mono/old-seed-0", "mono/partial-seed-0", "poly/seed-0")
    with pytest.raises(UserError, match="several categories"):
        find_detector(run)
    assert find_detector(run / "mono") == run / "mono/old-seed-0/detector.pt"
    (run / "mono/old-seed-0").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="several categories"):
        find_detector(run)
    with pytest.raises(UserError, match="run the same `train` again"):
        find_detector(run / "mono")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    run = detectors(tmp_path / "run", "mono/seed-0", "poly/seed-0")
    (run / "mono").chmod(0)
    with pytest.raises(UserError, match="mono cannot be read"):
        find_detector(run)
    (run / "mono").chmod(0o700)


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
    finish(tmp_path).detector.unlink()
    with pytest.raises(UserError, match="kept no detector of this arm: train it again") as caught:
        find_detector(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_that_has_not_finished_its_first_detector_says_so(tmp_path: Path) -> None:
    begun(tmp_path).detector.touch()
    with pytest.raises(UserError, match="run the same `train` again"):
        find_detector(tmp_path)
