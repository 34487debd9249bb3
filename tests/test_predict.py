import csv
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO, SmallCache, invoke
from PIL import Image

from pipeline.cache.cache import open_cache
from pipeline.data.images import read_photo, read_rgb
from pipeline.errors import ImageError, UserError
from pipeline.threads import CORES
from pipeline.workers.execution import Execution
from train.deploy.pictures import write_pictures
from train.deploy.predict import predict
from train.deploy.wanted import Wanted
from train.detector import Detector
from train.run import open_run
from train.settings import TrainSettings
from train.training import train


@dataclass(frozen=True)
class Alone:
    """A run folder whose cache and data set are gone, and pictures to score."""

    run: Path
    pictures: Path


@pytest.fixture(scope="module")
def alone(small_cache: SmallCache, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    root, store, run = folder / "cells", folder / "cache.zarr", folder / "first"
    shutil.copytree(small_cache.root / "poly", root / "poly")
    shutil.copytree(small_cache.store, store)
    open_cache(str(store), "r+").update_attributes(root=str(root))
    settings = TrainSettings(steps=1, batch_size=2, crop=32, coreset=30, head_lr=0.01)
    train(open_run(str(store), run, settings, categories=["poly"], execution=Execution(device="cpu")))
    shutil.copytree(root / "poly/test", folder / "pictures")
    run.rename(folder / "copy of it")
    shutil.rmtree(root)
    shutil.rmtree(store)
    return Alone(folder / "copy of it", folder / "pictures")


@pytest.fixture(scope="module")
def detector(alone: Alone) -> Detector:
    return Detector.load(str(alone.run), "cpu")


def table_of(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def overlays_of(out: Path) -> list[str]:
    return sorted(
        file.relative_to(out / "overlays").as_posix() for file in (out / "overlays").rglob("*") if file.is_file()
    )


# --- scores -------------------------------------------------------------------------------------------------------


def test_the_run_folder_alone_gives_the_scores_of_the_run(alone: Alone, detector: Detector, tmp_path: Path) -> None:
    assert detector.fitted.localiser is not None
    found = predict(alone.run, [str(alone.pictures)], tmp_path, execution=Execution(device="cpu"))
    predictions, bad = found.lines, found.bad
    with (alone.run / "poly/seed-0/scores.csv").open(newline="") as file:
        expected = {row["path"].removeprefix("poly/test/"): float(row["score"]) for row in csv.DictReader(file)}
    found = {Path(p.path).relative_to(alone.pictures).as_posix(): p.score for p in predictions}
    assert bad == [] and len(expected) == 7
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_table_says_what_lies_above_the_threshold(alone: Alone, tmp_path: Path) -> None:
    predictions = predict(alone.run, [str(alone.pictures)], tmp_path, execution=Execution(device="cpu")).lines
    threshold = json.loads((alone.run / "poly/seed-0/cell.json").read_text())["threshold"]
    table = table_of(tmp_path)
    assert list(table[0]) == ["path", "score", "p_value", "threshold", "anomalous", "status"]
    assert {row["status"] for row in table} == {"ok"} and {row["threshold"] for row in table} == {f"{threshold:.4f}"}
    assert [(row["path"], float(row["score"]), bool(int(row["anomalous"]))) for row in table] == [
        (p.path, p.score, p.anomalous) for p in predictions
    ]
    assert all(len(row["score"].partition(".")[2]) == 4 for row in table)
    assert [p.anomalous for p in predictions] == [p.score > threshold for p in predictions]


def test_the_printed_numbers_give_our_verdict(
    alone: Alone, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(alone.pictures.rglob("*.png"))
    raw = detector.decision_scores(detector.score([read_rgb(path, detector.decoding) for path in paths]))
    # By a hair on either side of a score, as it may come out on another machine, and as earlier versions stored it.
    for number, hair in enumerate((-4e-5, -1e-9, 0, 1e-9, 4e-5)):
        near = replace(detector, calibration=replace(detector.calibration, threshold=float(raw[0]) + hair))
        monkeypatch.setattr(Detector, "load", lambda *_, near=near: near)
        lines = predict(alone.run, [str(alone.pictures)], tmp_path / "out", execution=Execution(device="cpu")).lines
        table = table_of(tmp_path / "out")
        printed = [float(row["score"]) > float(row["threshold"]) for row in table]
        assert printed == [bool(int(row["anomalous"])) for row in table] == [p.anomalous for p in lines], number
        assert [p.score > p.threshold for p in near.predict(paths)] == printed
    assert [float(row["score"]) for row in table] == [round(score, 4) for score in raw.tolist()]


@pytest.mark.slow
def test_scores_do_not_depend_on_company(alone: Alone, tmp_path: Path) -> None:
    no_pictures = Wanted(pictures="none")

    def scores(*targets: Path) -> dict[str, set[float | None]]:
        found: dict[str, set[float | None]] = {}
        out = tmp_path / "out"
        for line in predict(alone.run, list(map(str, targets)), out, Execution(device="cpu"), no_pictures).lines:
            found.setdefault(line.path, set()).add(line.score)
        return found

    detector, files = Detector.load(alone.run, "cpu"), sorted(alone.pictures.rglob("*.png"))
    together = detector.predict(files)
    for file, among in zip(files, together, strict=True):
        (one,) = detector.predict([file])
        again = detector.predict([file, *files[:3], file])
        found = [detector.score([read_rgb(file, detector.decoding)] * n).image for n in (1, 3)]
        for name, values in found[0].items():
            assert {*values} == {*found[1][name]}, name
        assert one.score == among.score == again[0].score == again[-1].score
        np.testing.assert_array_equal(one.map, among.map)
    whole = scores(alone.pictures)
    assert len(whole) == 7 and all(scores(file) == {str(file): whole[str(file)]} for file in files[:2])
    assert scores(alone.pictures, files[0], files[0]) == whole and {len(found) for found in whole.values()} == {1}


def test_an_overlay_an_image_in_the_folders_of_the_images(alone: Alone, tmp_path: Path) -> None:
    predict(alone.run, [str(alone.pictures)], tmp_path, execution=Execution(device="cpu"))
    assert overlays_of(tmp_path) == sorted(
        file.relative_to(alone.pictures).with_suffix(".jpg").as_posix() for file in alone.pictures.rglob("*.png")
    )
    with Image.open(tmp_path / "overlays/crack/000.jpg") as image:
        assert (image.size[0], image.mode, image.format) == (2 * 320 + 8, "RGB", "JPEG")


@pytest.mark.parametrize("pictures", ["all", "anomalous", "none"])
def test_overlays_are_of_the_images_asked_for(
    pictures: str, alone: Alone, small_cache: SmallCache, tmp_path: Path
) -> None:
    predict(alone.run, [str(alone.pictures)], tmp_path, execution=Execution(device="cpu"))
    (tmp_path / "overlays/000.png").write_bytes(b"somebody else's")
    # A held-out normal, which the threshold is at or above, is among the second.
    targets = alone.pictures / "crack", small_cache.root / "poly/train"
    said = invoke("predict", alone.run, *targets, "--out", tmp_path, "--device", "cpu", "--pictures", pictures)
    verdicts = {row["path"]: bool(int(row["anomalous"])) for row in table_of(tmp_path)}
    assert {*verdicts.values()} == {False, True}
    drawn = [path for path, anomalous in verdicts.items() if pictures == "all" or (anomalous and pictures != "none")]
    names = [str(Path(path).relative_to(next(t for t in targets if t in Path(path).parents))) for path in drawn]
    assert overlays_of(tmp_path) == sorted(["000.png", *(name.replace(".png", ".jpg") for name in names)])
    assert f"{sum(verdicts.values())} of 8 images anomalous; {len(drawn)} overlays in" in said.stdout


def test_an_overlay_that_cannot_be_written_stops_before_the_table(
    alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.deploy.predict.write_pictures", full)
    with pytest.raises(OSError, match="No space"):
        predict(alone.run, [str(alone.pictures)], tmp_path / "out", execution=Execution(device="cpu"))
    assert not (tmp_path / "out").exists()


def test_images_are_read_and_drawn_a_bounded_number_ahead(
    alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    drawn: list[Any] = []
    most = 0

    def reading(*arguments: Any) -> Any:
        nonlocal most
        read.append(arguments)
        most = max(most, len(read) - len(drawn))
        return read_photo(*arguments)

    def drawing(*arguments: Any) -> None:
        write_pictures(*arguments)
        drawn.append(arguments)

    monkeypatch.setattr("train.deploy.reading.read_photo", reading)
    monkeypatch.setattr("train.deploy.predict.write_pictures", drawing)
    targets = [str(alone.pictures)] * (2 * CORES.count + 2)
    predict(alone.run, targets, tmp_path, execution=Execution(device="cpu"))
    # Four per thread wait to be scored, are scored, and wait to be drawn.
    assert len(read) == len(drawn) == 7 * len(targets) and most <= 13 * CORES.count < len(read)


def test_files_and_folders_are_scored_in_their_order(alone: Alone, tmp_path: Path) -> None:
    file = alone.pictures / "crack/002.png"
    predictions = predict(
        alone.run, [str(file), str(alone.pictures / "good"), str(file)], tmp_path, execution=Execution(device="cpu")
    ).lines
    good = [str(alone.pictures / f"good/{i:03}.png") for i in range(4)]
    assert [p.path for p in predictions] == [str(file), *good, str(file)]
    assert predictions[0].score == predictions[-1].score


def test_images_of_one_name_get_an_overlay_each(alone: Alone, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    shutil.copytree(alone.pictures / "good", folder)
    with Image.open(folder / "000.png") as image:
        image.save(folder / "000.bmp")
    shutil.copy(folder / "001.png", folder / "000-2.png")
    targets = [str(folder), str(alone.pictures / "crack"), str(alone.pictures / "good/003.png")]
    predictions = predict(alone.run, targets, tmp_path / "out", execution=Execution(device="cpu")).lines
    overlays = overlays_of(tmp_path / "out")
    assert len(overlays) == len(predictions) == len(list(folder.iterdir())) + 3 + 1
    assert {"000.jpg", "000-2.jpg", "003.jpg", "003-2.jpg"} <= set(overlays)


def test_colour_and_shape_of_an_image_are_free(alone: Alone, tmp_path: Path) -> None:
    Image.new("RGBA", (90, 40), (200, 10, 10, 255)).save(tmp_path / "wide.webp")
    (prediction,) = predict(
        alone.run, [str(tmp_path / "wide.webp")], tmp_path / "out", execution=Execution(device="cpu")
    ).lines
    assert prediction.score is not None and np.isfinite(prediction.score) and prediction.anomalous


# --- from Python --------------------------------------------------------------------------------------------------


def test_paths_and_arrays_of_any_size_are_predicted_in_their_order(alone: Alone, detector: Detector) -> None:
    paths = sorted(alone.pictures.rglob("*.png"))
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    # 21 are more than one batch.
    mixed = detector.predict([*map(str, paths), *arrays, *paths])
    assert [p.path for p in mixed] == [*map(str, paths), *[None] * 7, *map(str, paths)]
    scores, maps = np.array([p.score for p in mixed]).reshape(3, 7), np.stack([p.map for p in mixed])
    np.testing.assert_allclose(scores, scores[[0, 0, 0]], rtol=1e-4, atol=1e-4)
    assert maps.shape == (21, 64, 64) and maps.dtype == np.float32 and (maps >= 0).all()
    np.testing.assert_allclose(maps[7:14], maps[:7], rtol=1e-3, atol=1e-3)
    assert all(p.threshold == detector.threshold and p.anomalous == (p.score > p.threshold) for p in mixed)
    assert detector.predict([]) == []


def test_what_cannot_be_read_is_named(alone: Alone, detector: Detector, tmp_path: Path) -> None:
    good = np.zeros((50, 40, 3), np.uint8)
    wrong: tuple[Any, ...] = (good[..., 0], good.astype(np.float32), good[None], good[:0])
    for bad in wrong:
        with pytest.raises(ValueError, match=r"^images\[1\] is .*: give an RGB image \(H,W,3\) of uint8$"):
            detector.predict([good, bad])
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ("bad.png", "gone.png"):
        with pytest.raises(ImageError, match=name):
            detector.predict([good, tmp_path / name])


def test_a_network_that_says_nothing_finite_is_an_error(alone: Alone) -> None:
    broken = Detector.load(alone.run, "cpu")
    next(broken.fitted.pretrained.stages[-1].parameters()).data.fill_(np.nan)
    with pytest.raises(ValueError, match="not finite"):
        broken.predict([alone.pictures / "crack/000.png"])


@pytest.mark.slow
def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, train; assert 'torch' not in sys.modules; from train import Detector; assert Detector.load"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)


# --- images that cannot be read -----------------------------------------------------------------------------------


@pytest.fixture
def spoiled(alone: Alone, tmp_path: Path) -> Path:
    folder = tmp_path / "spoiled"
    shutil.copytree(alone.pictures / "good", folder)
    (folder / "001.png").write_bytes(b"no image")
    return folder


def test_a_bad_image_stops_before_the_table(alone: Alone, spoiled: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        predict(alone.run, [str(spoiled)], tmp_path / "out", execution=Execution(device="cpu"))
    message = str(caught.value)
    assert str(spoiled / "001.png") in message and "--bad-images skip" in message and "\n" not in message
    assert not (tmp_path / "out/predictions.csv").exists()


def test_a_bad_image_is_skipped_if_asked(alone: Alone, spoiled: Path, tmp_path: Path) -> None:
    found = predict(alone.run, [str(spoiled)], tmp_path / "out", Execution(device="cpu", bad_images="skip"))
    predictions, bad = found.lines, found.bad
    assert len(bad) == 1 and str(spoiled / "001.png") in bad[0]
    assert [Path(p.path).name for p in predictions] == [f"00{i}.png" for i in range(4)]
    assert overlays_of(tmp_path / "out") == ["000.jpg", "002.jpg", "003.jpg"]
    table = table_of(tmp_path / "out")
    assert [Path(row["path"]).name for row in table] == [f"00{i}.png" for i in range(4)]
    assert (table[1]["score"], table[1]["anomalous"]) == ("", "")
    assert table[1]["status"].startswith("cannot be read as an image (")
    assert table[1]["threshold"] == table[0]["threshold"]


def test_nothing_to_score_is_a_mistake(alone: Alone, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in ("empty", "missing.png"):
        with pytest.raises(UserError, match=target) as caught:
            predict(alone.run, [str(tmp_path / target)], tmp_path / "out", execution=Execution(device="cpu"))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# --- start-up -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_predict_imports_only_what_it_uses(alone: Alone, tmp_path: Path) -> None:
    code = "import sys, cli; cli.main(sys.argv[1:], standalone_mode=False); print('imported', *sys.modules)"
    command = [sys.executable, "-c", code, "predict", alone.run, alone.pictures, "--out", tmp_path, "--device", "cpu"]
    said = subprocess.run(list(map(str, command)), check=True, cwd=REPO, capture_output=True, text=True).stdout
    imported = said.rpartition("imported ")[2].split()
    assert "torch" in imported and len(overlays_of(tmp_path)) == 7
    unused = {"dask", "distributed", "matplotlib", "pandas", "pytorch_grad_cam", "scipy.stats", "sklearn", "zarr"}
    assert unused.isdisjoint(imported)
