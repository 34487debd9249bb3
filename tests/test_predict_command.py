"""`predict` as it is typed: what it prints and how it exits, and which detector of a run decides."""

import csv
import json
import shutil
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import SmallCache, command_line, invoke
from PIL import Image

from cli import main
from pipeline.workers.execution import Execution
from train.deploy.predict import Part, predict
from train.deploy.table import Line
from train.deploy.told import drift_line
from train.deploy.wanted import Wanted
from train.detector import Detector
from train.run import open_run
from train.settings import TrainSettings
from train.training import train

CPU = Execution(device="cpu")
KEYS = ["path", "score", "p_value", "threshold", "anomalous", "status"]


@pytest.fixture(scope="module")
def run(small_cache: SmallCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two categories, mono and poly."""
    folder = tmp_path_factory.mktemp("both") / "run"
    train(open_run(small_cache.store, folder, TrainSettings(negatives="none", coreset=30), execution=CPU))
    return folder


@pytest.fixture
def pictures(small_cache: SmallCache, tmp_path: Path) -> Path:
    """Seven pictures of poly."""
    return Path(shutil.copytree(small_cache.root / "poly/test", tmp_path / "pictures"))


def told(run: Path, *arguments: object, given: bytes | None = None) -> Result:
    """`predict` on the CPU, in this process."""
    words = ["predict", run, *arguments, "--device", "cpu", "--pictures", "none"]
    return CliRunner().invoke(main, list(map(str, words)), input=given)


def table_of(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- what is printed ----------------------------------------------------------------------------------------------


def test_the_worst_are_shown_first_and_the_threshold_and_the_rate_are_told(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    for number in range(16):
        shutil.copy(pictures / "good/000.png", pictures / f"good/more-{number}.png")
    said = told(run / "poly", pictures, "--out", tmp_path / "out")
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    shown = [line.split() for line in lines if ".png" in line]
    scores = [float(row["score"]) for row in table_of(tmp_path / "out")]
    assert len(scores) == 23 and [float(words[1]) for words in shown] == sorted(scores, reverse=True)[:20]
    assert any("and 3 more with lower scores" in line for line in lines)
    detector = Detector.load(run / "poly", "cpu")
    assert f"threshold {detector.threshold:.4f}: the highest of 5 held-out normals; expect 17 % false" in said.stdout
    assert "images/s" in lines[-1] and f"{sum(s > detector.threshold for s in scores)} of 23 images anom" in lines[-1]
    # In input order in the file, whatever is worst.
    assert [row["path"] for row in table_of(tmp_path / "out")] == sorted(map(str, pictures.rglob("*.png")))


def test_json_is_a_line_per_file_and_nothing_else(run: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "good/001.png").write_bytes(b"no image")
    (pictures / "note.txt").touch()
    said = told(run / "poly", pictures, "--out", tmp_path / "out", "--json", "--bad-images", "skip")
    assert said.exit_code == 0, said.output
    values = [json.loads(line) for line in said.stdout.splitlines()]
    table = table_of(tmp_path / "out")
    assert [list(value) for value in values] == [KEYS] * 7 == [list(row) for row in table]
    for value, row in zip(values, table, strict=True):
        assert (value["path"], value["status"]) == (row["path"], row["status"])
        assert value["threshold"] == float(row["threshold"])
        if row["score"]:
            assert value["score"] == float(row["score"]) and value["anomalous"] is (row["anomalous"] == "1")
            assert value["p_value"] == pytest.approx(float(row["p_value"]), abs=1e-4)
        else:
            assert (value["score"], value["p_value"], value["anomalous"]) == (None, None, None)
    assert [value["score"] for value in values].count(None) == 1
    for part in ("threshold", "images/s", "skipped", "note.txt"):
        assert part in said.stderr


def test_a_threshold_decides_and_is_told(run: Path, pictures: Path, tmp_path: Path) -> None:
    own = Detector.load(run / "poly", "cpu").threshold
    for threshold, anomalous in ((-1e6, 7), (1e6, 0)):
        said = told(run / "poly", pictures, "--out", tmp_path / "out", "--threshold", threshold)
        assert said.exit_code == 0 and f"{anomalous} of 7 images anomalous" in said.stdout, said.output
        assert f"threshold {threshold:.4f}, given by --threshold (the detector's own is {own:.4f})" in said.stdout
        assert {row["threshold"] for row in table_of(tmp_path / "out")} == {f"{threshold:.4f}"}
    for wrong in ("nan", "inf", "-inf", "1e999", "x"):
        said = told(run / "poly", pictures, "--out", tmp_path / "other", "--threshold", wrong)
        assert said.exit_code == 2 and "--threshold" in said.stderr and not (tmp_path / "other").exists()


def test_half_of_the_images_above_nearly_all_normals_is_told(run: Path, pictures: Path, tmp_path: Path) -> None:
    for number in range(50):
        shutil.copy(pictures / "crack/000.png", pictures / f"crack/more-{number}.png")
    said = told(run / "poly", pictures, "--out", tmp_path / "out")
    assert "the median score of these 57 images" in said.stderr and "may have drifted" in said.stderr
    said = told(run / "poly", pictures / "crack/000.png", "--out", tmp_path / "out")
    assert "drifted" not in said.output


@pytest.mark.parametrize(("score", "count", "drifted"), [(9.1, 50, True), (9.1, 49, False), (8.9, 200, False)])
def test_drift_is_told_by_the_rule(run: Path, score: float, count: int, drifted: bool) -> None:
    normals = tuple(map(float, range(11)))  # whose 90th percentile is 9
    calibration = replace(Detector.load(run / "poly", "cpu").calibration, normal_scores=normals)
    lines = [Line("a.png", value, 0.1, 20.0, False, "ok", False) for value in (score, 50.0, 0.0)]
    part = Part(None, calibration, False, 20.0, None, [lines[0]] * (count - 2) + lines[1:])
    assert (drift_line(part) is not None) == drifted
    assert drift_line(replace(part, calibration=replace(calibration, normal_scores=()))) is None


# --- status -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_anomaly_is_a_status_of_its_own_where_asked(run: Path, pictures: Path, tmp_path: Path) -> None:
    def status(*arguments: object) -> int:
        return told(run / "poly", pictures, "--out", tmp_path / "out", *arguments).exit_code

    assert status("--threshold", "-1e6") == 0
    assert status("--threshold", "-1e6", "--fail-on-anomaly") == 3 and (tmp_path / "out/predictions.csv").exists()
    assert status("--threshold", "-1e6", "--fail-on-anomaly", "--json") == 3
    assert status("--threshold", "1e6", "--fail-on-anomaly") == 0
    (pictures / "good/001.png").write_bytes(b"no image")
    assert status("--threshold", "-1e6", "--fail-on-anomaly") == 2
    assert status("--threshold", "1e6", "--fail-on-anomaly", "--bad-images", "skip") == 0
    assert status("--threshold", "-1e6", "--fail-on-anomaly", "--bad-images", "skip") == 3


def test_wrong_and_blank_frames_are_told_in_the_status(run: Path, pictures: Path, tmp_path: Path) -> None:
    with Image.open(pictures / "good/000.png") as image:
        image.convert("L").point(lambda value: value / 8).save(tmp_path / "dark.png")
        image.resize((75, 75)).save(tmp_path / "small.png")
        image.resize((600, 150)).save(tmp_path / "wide.png")
    Image.new("RGB", (300, 300), (90, 90, 90)).save(tmp_path / "blank.png")
    names = ("dark", "small", "wide", "blank")
    said = told(run / "poly", *(tmp_path / f"{name}.png" for name in names), pictures, "--out", tmp_path / "out")
    assert said.exit_code == 0, said.output
    table = {Path(row["path"]).stem: row for row in table_of(tmp_path / "out")[:4]}
    for name, words in zip(names, ("times as dark", "4 times as small", "4 times as wide", "constant"), strict=True):
        assert table[name]["status"].startswith("ok, unlike the normals: ") and words in table[name]["status"], name
        assert table[name]["score"] and words in said.stdout
    assert [row["status"] for row in table_of(tmp_path / "out")[4:]].count("ok") >= 5


# --- standard input -----------------------------------------------------------------------------------------------


def test_paths_are_read_from_standard_input(run: Path, pictures: Path, tmp_path: Path) -> None:
    paths = [pictures / "crack/001.png", pictures / "good"]
    expected = [str(paths[0]), *(str(pictures / f"good/00{i}.png") for i in range(4))]
    for given in (f"{paths[0]}\n{paths[1]}\n", f"\n{paths[0]}\r\n\r\n{paths[1]}"):
        said = told(run / "poly", "-", "--out", tmp_path / "out", given=given.encode())
        assert said.exit_code == 0, said.output
        assert [row["path"] for row in table_of(tmp_path / "out")] == expected
    said = told(run / "poly", pictures / "crack/000.png", "-", "--out", tmp_path / "out", given=str(paths[0]).encode())
    assert [Path(row["path"]).name for row in table_of(tmp_path / "out")] == ["000.png", "001.png"]
    for nothing in (b"", b"\n \n"):
        said = told(run / "poly", "-", "--out", tmp_path / "none", given=nothing)
        assert said.exit_code == 2 and "standard input has no path" in said.stderr
    said = told(run / "poly", "-", "--out", tmp_path / "none", given=b"\xff.png\n")
    assert said.exit_code == 2 and said.stderr.count("\n") == 1 and r"\xff.png" in said.stderr
    said = told(run / "poly", "-", "--out", tmp_path / "none", given=b"no/such.png\n")
    assert said.exit_code == 2 and "no/such.png does not exist" in said.stderr


@pytest.mark.slow
def test_a_closed_standard_input_is_told_and_json_is_alone_on_standard_output(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    command = command_line("predict", run / "poly", "-", "--device", "cpu", "--out", tmp_path / "out", "--json")
    closed = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, text=True)
    assert closed.returncode == 2 and "standard input" in closed.stderr and closed.stdout == ""
    said = subprocess.run([*command, "--fail-on-anomaly"], input=str(pictures), capture_output=True, text=True)
    values = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(values) == 7 and said.returncode == (3 if any(value["anomalous"] for value in values) else 0)


# --- several categories -------------------------------------------------------------------------------------------


def test_a_run_of_several_categories_says_what_to_give(run: Path, pictures: Path, tmp_path: Path) -> None:
    said = told(run, pictures, "--out", tmp_path / "out")
    assert said.exit_code == 2 and said.stderr.count("\n") == 1
    assert "(mono, poly)" in said.stderr and "--category mono" in said.stderr and "folder" in said.stderr
    said = told(run, pictures, "--out", tmp_path / "out", "--category", "none")
    assert said.exit_code == 2 and "no category none (but mono, poly)" in said.stderr
    for alone in (run / "poly", run / "poly/seed-0", run / "poly/seed-0/detector.pt"):
        said = told(alone, pictures, "--out", tmp_path / "out", "--category", "poly")
        assert said.exit_code == 2 and "leave --category poly out" in said.stderr
    assert not (tmp_path / "out").exists()


def test_the_category_asked_for_decides(run: Path, pictures: Path, tmp_path: Path) -> None:
    tables = []
    for words in ((run, "--category", "poly"), (run / "poly",)):
        said = told(words[0], pictures, *words[1:], "--out", tmp_path / "out")
        assert said.exit_code == 0, said.output
        tables.append(table_of(tmp_path / "out"))
    assert tables[0] == tables[1]


def test_folders_with_the_names_of_categories_are_scored_by_their_detectors(
    run: Path, small_cache: SmallCache, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    for category in ("poly", "mono"):
        shutil.copytree(small_cache.root / category / "test", folder / category)
    shutil.copy(folder / "mono/good/000.png", folder / "stray.png")
    shutil.copytree(folder / "mono/good", folder / "other")
    alone = [row for name in ("mono", "poly") for row in scored(run / name, folder / name, tmp_path / name)]
    said = told(run, folder, "--out", tmp_path / "out")
    assert said.exit_code == 0, said.output
    assert table_of(tmp_path / "out") == alone and len(alone) == 14
    assert "5 not scored: in no folder of the name of a category (mono, poly)" in said.stderr
    assert "\nmono: threshold" in said.stdout and "\npoly: threshold" in said.stdout
    assert len({row["threshold"] for row in alone}) == 2
    said = told(run, folder, "--out", tmp_path / "out", "--threshold", "1")
    assert said.exit_code == 2 and "--threshold is on the scale of one detector, not of 2" in said.stderr


def scored(run: Path, target: Path, out: Path) -> list[dict[str, str]]:
    assert told(run, target, "--out", out).exit_code == 0
    return table_of(out)


# --- files beside the table ---------------------------------------------------------------------------------------


def test_maps_and_masks_lie_beside_the_overlays(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Image.open(pictures / "good/000.png") as image:
        image.resize((200, 120)).save(pictures / "good/000.bmp")  # of the same name but for the suffix
    said = invoke("predict", run / "poly", pictures, "--out", out, "--device", "cpu", "--maps", "--masks")
    assert said.exit_code == 0, said.output
    names = {kind: sorted(p.relative_to(out / kind).with_suffix("").as_posix() for p in (out / kind).rglob("*.*"))
             for kind in ("overlays", "maps", "masks")}  # fmt: skip
    assert len(names["maps"]) == 8 and names["overlays"] == names["maps"] == names["masks"]
    detector = Detector.load(run / "poly", "cpu")
    (prediction,) = detector.predict([pictures / "crack/000.png"])
    saved = np.load(out / "maps/crack/000.npy")
    assert saved.dtype == np.float32 and saved.shape == (64, 64)
    np.testing.assert_array_equal(saved, prediction.map)
    sizes = set()
    for file in (out / "masks").rglob("*.png"):
        with Image.open(file) as mask:
            assert mask.mode == "L" and set(np.unique(np.asarray(mask))) <= {0, 255}
            sizes.add(mask.size)
            anomaly_map = np.load(out / "maps" / file.relative_to(out / "masks").with_suffix(".npy"))
            if anomaly_map.max() < detector.calibration.map_threshold:
                assert not np.asarray(mask).any()
    assert sizes == {(300, 300), (200, 120)}
    assert told(run / "poly", pictures, "--out", out).exit_code == 0  # without them
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == ["predictions.csv"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(run: Path, pictures: Path, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        targets = [str(pictures / "good/000.png")] * count
        tracemalloc.start()
        predict(run / "poly", targets, tmp_path / f"out-{count}", CPU, Wanted(maps=True))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(40)  # what is loaded once
    few, many = peak(100), peak(500)
    # An image that was kept would be 12 KB, a map 16 KB, a picture 900 KB.
    assert (many - few) / 400 < 4000
