from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SmallCache
from numpy.typing import NDArray

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.settings import PrecomputeSettings
from train.calibration import calibrate
from train.detector import Detector
from train.features.extract import patch_embedding
from train.recipe import recipe_of
from train.run import open_run, train
from train.scorers.fit import fit_scorers
from train.scorers.normals import embed_normals
from train.settings import PatchCoreSettings

CACHE = PrecomputeSettings(image_size=64, stages=("blocks.1", "blocks.4"))
# Of 64 pixels at stride 8.
PATCHES = 64


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return for_inference(load_backbone(CACHE.backbone, CACHE.weights))


@pytest.fixture(scope="module")
def whole(backbone: Backbone, photos: NDArray[np.uint8]) -> Detector:
    """All patches of the four normals are kept."""
    return fit(backbone, photos, coreset=1.0)


def fit(backbone: Backbone, photos: NDArray[np.uint8], coreset: float, seed: int = 0) -> Detector:
    settings = PatchCoreSettings(coreset=coreset)
    recipe = recipe_of(CACHE.backbone, settings)
    fitted = fit_scorers(
        recipe, backbone, None, None, embed_normals(backbone, recipe, list(photos[:4]), np.arange(4), seed), seed
    )
    weights = load_backbone(CACHE.backbone).state_dict()
    return Detector(CACHE, asdict(settings), weights, fitted, calibrate(fitted, photos[2:4], settings.false_alarms))


def test_the_score_is_the_largest_distance_to_the_nearest_normal_patch(
    backbone: Backbone, whole: Detector, photos: NDArray[np.uint8]
) -> None:
    with torch.inference_mode():
        pixels = backbone.normalise(torch.from_numpy(photos).permute(0, 3, 1, 2))
        patches = patch_embedding(backbone.activations(pixels, ("blocks.2", "blocks.4")), (8, 8), 3)
    flat = patches.permute(0, 2, 3, 1).flatten(1, 2).double()
    distances = torch.cdist(flat[4:].flatten(0, 1), flat[:4].flatten(0, 1)).amin(1).view(2, PATCHES)
    scores = whole.score(list(photos))
    assert whole.fitted.references.coreset.shape[0] == 4 * PATCHES
    np.testing.assert_allclose(scores.image["patchcore"][:4], 0, atol=1e-4)
    np.testing.assert_allclose(scores.image["patchcore"][4:], distances.amax(1).numpy(), rtol=1e-4)
    assert np.array_equal(whole.decision_scores(scores), scores.image["patchcore"])


def test_maps_are_high_where_the_image_is_not_normal(whole: Detector, photos: NDArray[np.uint8]) -> None:
    broken = photos[0].copy()
    broken[40:56, 8:24] = 255 - broken[40:56, 8:24]
    normal, anomalous = whole.score([photos[0], broken]).maps
    assert normal.shape == (64, 64) and normal.dtype == np.float32
    assert abs(normal).max() < 1e-3 < anomalous.max()
    y, x = np.unravel_index(anomalous.argmax(), anomalous.shape)
    assert 32 <= y < 64 and x < 32


def test_a_coreset_is_the_asked_share_and_its_seed_decides_it(backbone: Backbone, photos: NDArray[np.uint8]) -> None:
    first, same, other = (fit(backbone, photos, 0.1, seed).fitted.references.coreset for seed in (0, 0, 1))
    assert len(first) == round(0.1 * 4 * PATCHES)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_batches_make_no_difference(whole: Detector, photos: NDArray[np.uint8]) -> None:
    many = [photos[i % 6] for i in range(20)]
    together = whole.score(many).image["patchcore"]
    np.testing.assert_allclose(together[17], whole.score([photos[5]]).image["patchcore"][0], rtol=1e-5)


def test_the_threshold_is_of_the_normals_held_out(whole: Detector, photos: NDArray[np.uint8]) -> None:
    assert whole.threshold == pytest.approx(whole.score(list(photos[2:4])).image["patchcore"].max())


def test_its_detector_is_saved_and_loaded_as_any_other(
    whole: Detector, photos: NDArray[np.uint8], tmp_path: Path
) -> None:
    whole.save(tmp_path / "detector.pt")
    loaded = Detector.load(tmp_path, "cpu")
    assert loaded.recipe == whole.recipe and loaded.calibration == whole.calibration
    scores = whole.score(photos)
    for i, prediction in enumerate(loaded.predict(list(photos))):
        assert prediction.score == scores.image["patchcore"][i] and np.array_equal(prediction.map, scores.maps[i])
        assert prediction.anomalous == (prediction.score > whole.threshold == prediction.threshold)


def test_its_run_folder_is_one_of_train(small_cache: SmallCache, tmp_path: Path) -> None:
    settings = PatchCoreSettings(coreset=0.02)
    run = open_run(small_cache.store, tmp_path, settings, categories=["poly"], device="cpu", resume=True)
    cells = train(run, (0, 1))
    assert [(cell.seed, cell.n_train, cell.n_test) for cell in cells] == [(0, 3, 7), (1, 3, 7)]
    assert all(cell.scorers == {"patchcore": cell.metrics["image_auroc"]} for cell in cells)
    assert {path.name for path in (tmp_path / "poly/seed-1").iterdir()} == {
        "cell.json",
        "detector.pt",
        "maps.png",
        "scores.csv",
        "scores.png",
    }
    assert train(run, (0, 1)) == cells
    other = replace(settings, coreset=0.03)
    with pytest.raises(Exception, match=r"train.coreset: 0.02, not 0.03"):
        train(replace(run, settings=other))
