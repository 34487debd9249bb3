"""What earlier commits wrote still opens and says what it said: a cache stopped half-way, a run, and a detector."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NORMALS, REPO, changed_at, fill_cache, invoke, read_arrays

from pipeline.backbones.load import load_backbone
from pipeline.cache.cache import open_cache
from pipeline.cache.verify import verify_cache
from pipeline.data.datasets import load
from pipeline.data.images import Decoding, read_rgb
from pipeline.errors import UserError
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from train.deploy.export import export_model
from train.deploy.predict import predict
from train.detector import Detector

# Of the scorers of that commit those that are still there.
SCORERS = {"untrained", "embedding", "patches", "sum"}

# Batch norms are folded today: activations move by some 1e-6, and sums of standardised scores by more where they are 0.
CLOSE: Any = {"rtol": 1e-4, "atol": 1e-4}

OLD = REPO / "tests/old"


@pytest.fixture
def old_cache(tmp_path: Path) -> str:
    """The cache of `image_root` at 32 pixels whose second chunk of mono is pending."""
    with zipfile.ZipFile(OLD / "cache-091a564.zip") as archive:
        archive.extractall(tmp_path)
    return str(tmp_path / "folder.zarr")


def test_an_old_cache_opens_and_says_what_is_pending(old_cache: str) -> None:
    cache = open_cache(old_cache)
    assert (cache.dataset, cache.image_root, cache.complete) == ("folder", "/data/cells", False)
    assert cache.names() == list(NORMALS)
    assert list(cache.pending()) == [("mono", 1, NORMALS["mono"] - 64)]
    assert cache["poly"].usable.tolist() == list(range(NORMALS["poly"]))
    assert cache["mono"].settings == PrecomputeSettings(
        image_size=32, pairs=4, stages=("blocks.1", "blocks.2", "blocks.4", "blocks.6")
    )


@pytest.mark.slow
def test_an_old_cache_is_finished_verified_and_trained_on(old_cache: str, image_root: Path, tmp_path: Path) -> None:
    before = read_arrays(old_cache)
    settings = PrecomputeSettings(image_size=32, pairs=4)
    report = fill_cache(load("folder", str(image_root)), old_cache, settings, device="cpu")
    assert report.computed == NORMALS["mono"] - 64
    after = read_arrays(old_cache)
    for name, values in before.items():
        rows = 1 if name == "mono/done" else 64 if name.startswith("mono") else None
        np.testing.assert_array_equal(after[name][:rows], values[:rows], err_msg=name)
    assert verify_cache(old_cache).problems == ()
    options = ("--category", "mono", "--steps", 1, "--batch-size", 2, "--device", "cpu")
    trained = invoke("train", "--store", old_cache, "--out", tmp_path / "run", *options)
    assert trained.exit_code == 0, trained.output
    predicted = invoke("predict", tmp_path / "run", image_root / "mono/test", "--out", tmp_path / "out")
    assert predicted.exit_code == 0 and "of 7 images anomalous" in predicted.stdout


@pytest.fixture(scope="module")
def old_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a detector of format 3; the file leaves out the backbone's weights, which are put back."""
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(OLD / "run-091a564.zip") as archive:
        archive.extractall(folder)
    path = folder / "run/mono/seed-0/detector.pt"
    state = torch.load(path, weights_only=True)
    assert state["format"] == 3 and "recipe" not in state
    weights = load_backbone("efficientnet_lite0").state_dict()
    state["pretrained"] = weights
    state["network"] |= {f"backbone.{name}": value for name, value in weights.items()}
    torch.save(state, path)
    return folder / "run"


@pytest.fixture(scope="module")
def said(old_run: Path) -> Any:
    """What that commit said of some images."""
    return json.loads((old_run.parent / "expected.json").read_text())


def test_an_old_detector_gives_the_scores_and_maps_it_gave(old_run: Path, said: Any, image_root: Path) -> None:
    detector = Detector.load(old_run, "cpu")
    scores = detector.score(read_rgb(image_root / path, Decoding(32, "stretch", None)) for path in said["paths"])
    # What the others said is no longer told; today's other fusion is.
    assert set(scores.image) == {*SCORERS, "largest"} and said["scores"].keys() - SCORERS == {"gde", "knn", "head"}
    for name in SCORERS:
        np.testing.assert_allclose(scores.image[name], said["scores"][name], **CLOSE, err_msg=name)
    np.testing.assert_allclose(scores.maps.sum((1, 2), dtype=np.float64), said["map_sums"], **CLOSE)
    assert detector.threshold == said["threshold"]
    assert detector.recipe.deciding_score == "sum" and detector.fitted.localiser is None


def test_patchcore_of_format_5_gives_the_scores_and_maps_it_gave(image_root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(OLD / "patchcore-81891b0.zip") as archive:
        archive.extractall(tmp_path)
    said = json.loads((tmp_path / "expected.json").read_text())
    state = torch.load(tmp_path / "detector.pt", weights_only=True)
    assert state["format"] == 5 and state["pretrained"] is None
    torch.save({**state, "pretrained": load_backbone("efficientnet_lite0").state_dict()}, tmp_path / "detector.pt")
    detector = Detector.load(tmp_path, "cpu")
    scores = detector.score(read_rgb(image_root / path, Decoding(32, "stretch", None)) for path in said["paths"])
    assert set(scores.image) == {"patchcore"} and detector.threshold == said["threshold"]
    np.testing.assert_allclose(scores.image["patchcore"], said["scores"], **CLOSE)
    np.testing.assert_allclose(scores.maps.sum((1, 2), dtype=np.float64), said["map_sums"], **CLOSE)


def changed(old_run: Path, out: Path, **values: object) -> Path:
    """A copy of the old detector with other settings."""
    state = torch.load(old_run / "mono/seed-0/detector.pt", weights_only=True)
    state["settings"] |= values
    torch.save(state, out)
    return out


@pytest.mark.parametrize("scorer", ["patches", "embedding"])
def test_an_old_detector_decides_by_a_scorer_that_is_still_there(
    scorer: str, old_run: Path, said: Any, image_root: Path, tmp_path: Path
) -> None:
    detector = Detector.load(changed(old_run, tmp_path / "detector.pt", scorer=scorer), "cpu")
    scores = [p.score for p in detector.predict([image_root / path for path in said["paths"]])]
    np.testing.assert_allclose(scores, said["scores"][scorer], **CLOSE)


@pytest.mark.parametrize("scorer", ["gde", "knn", "head"])
def test_an_old_detector_that_decides_by_a_scorer_that_is_gone_is_refused(
    scorer: str, old_run: Path, tmp_path: Path
) -> None:
    path = changed(old_run, tmp_path / "detector.pt", scorer=scorer)
    with pytest.raises(
        UserError, match=f"decides by {scorer}, which this version no longer has: train again"
    ) as caught:
        Detector.load(path, "cpu")
    assert all(words in str(caught.value) for words in (str(path), "train again")) and "\n" not in str(caught.value)


def test_an_old_run_is_not_gone_on_with_and_stays(
    old_cache: str, old_run: Path, image_root: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(old_run, tmp_path / "run"))
    precompute = ("precompute", "--dataset", "folder", "--root", image_root, "--store", old_cache)
    assert invoke(*precompute, "--image-size", 32, "--pairs", 4).exit_code == 0
    before = changed_at(run)
    train = ("train", "--store", old_cache, "--out", run, "--category", "mono", "--device", "cpu")
    refused = invoke(*train, "--steps", 4, "--batch-size", 4)
    assert refused.exit_code == 2
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("Error: ")]
    assert str(run) in line and "as in an earlier version" in line and "--overwrite" in line
    assert changed_at(run) == before


def test_an_old_detector_predicts(old_run: Path, said: Any, image_root: Path, tmp_path: Path) -> None:
    files = [str(image_root / path) for path in said["paths"]]
    found = predict(old_run, files, tmp_path, execution=Execution(device="cpu"))
    verdicts, bad = found.lines, found.bad
    np.testing.assert_allclose([v.score for v in verdicts], said["scores"]["sum"], **CLOSE)
    assert bad == [] and [v.anomalous for v in verdicts] == [s > said["threshold"] for s in said["scores"]["sum"]]


@pytest.mark.slow
def test_an_old_detector_is_exported_and_saved_anew(old_run: Path, said: Any, image_root: Path, tmp_path: Path) -> None:
    images = np.stack([read_rgb(image_root / path, Decoding(32, "stretch", None)) for path in said["paths"]])
    detector = Detector.load(old_run / "mono", "cpu")
    export_model(old_run / "mono", tmp_path / "detector.pt2")
    program = torch.export.load(tmp_path / "detector.pt2").module()
    scores, maps, _ = program(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(scores.numpy(), said["scores"]["sum"], **CLOSE)
    np.testing.assert_allclose(maps.sum((1, 2), dtype=torch.float64).numpy(), said["map_sums"], **CLOSE)
    detector.save(tmp_path / "detector.pt")
    again = Detector.load(tmp_path, "cpu")
    assert (again.recipe, again.calibration) == (detector.recipe, detector.calibration)
    assert [p.score for p in again.predict(list(images))] == [p.score for p in detector.predict(list(images))]
