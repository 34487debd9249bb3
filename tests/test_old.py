"""What commit 091a564 wrote still opens, and says what it said."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO

from pipeline.backbone import load_backbone
from pipeline.images import read_rgb
from train.detector import Detector
from train.export import export_model
from train.predict import predict


@pytest.fixture(scope="module")
def old_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a detector of format 3; the file leaves out the backbone's weights, which are put back."""
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(REPO / "tests/old/run-091a564.zip") as archive:
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
    scores = detector.score(read_rgb(image_root / path, 32, "stretch") for path in said["paths"])
    assert list(scores.image) == list(said["scores"])
    for name, values in said["scores"].items():
        np.testing.assert_allclose(scores.image[name], values, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(scores.maps.sum((1, 2), dtype=np.float64), said["map_sums"], rtol=1e-5)
    assert detector.threshold == said["threshold"]


def test_an_old_detector_predicts(old_run: Path, said: Any, image_root: Path, tmp_path: Path) -> None:
    files = [str(image_root / path) for path in said["paths"]]
    verdicts, bad = predict(old_run, files, tmp_path, device="cpu")
    np.testing.assert_allclose([v.score for v in verdicts], said["scores"]["sum"], rtol=1e-5)
    assert bad == [] and [v.anomalous for v in verdicts] == [s > said["threshold"] for s in said["scores"]["sum"]]


def test_an_old_detector_is_exported_and_saved_anew(old_run: Path, said: Any, image_root: Path, tmp_path: Path) -> None:
    images = np.stack([read_rgb(image_root / path, 32, "stretch") for path in said["paths"]])
    detector = Detector.load(old_run / "mono", "cpu")
    export_model(detector, tmp_path / "detector.pt2")
    program = torch.export.load(tmp_path / "detector.pt2").module()
    scores, maps = program(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(scores.numpy(), said["scores"]["sum"], rtol=1e-5)
    np.testing.assert_allclose(maps.sum((1, 2), dtype=torch.float64).numpy(), said["map_sums"], rtol=1e-5)
    detector.save(tmp_path / "detector.pt")
    again = Detector.load(tmp_path, "cpu")
    assert (again.recipe, again.calibration) == (detector.recipe, detector.calibration)
    assert [p.score for p in again.predict(list(images))] == [p.score for p in detector.predict(list(images))]
