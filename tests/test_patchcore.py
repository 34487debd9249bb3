from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SmallCache
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from torch import Tensor

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.data.levels import Levels
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from train.calibration import Unseen, calibrate
from train.detector import Detector
from train.features.extract import as_it_is, patch_embedding
from train.recipe import recipe_of
from train.run import open_run
from train.scorers.fit import embed_normals, fit_normals
from train.scorers.fitted import Fitted, join
from train.settings import PatchCoreSettings
from train.training import train

CACHE = PrecomputeSettings(image_size=64, stages=("blocks.1", "blocks.4"))
# Of 64 pixels at stride 8.
PATCHES = 64


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return for_inference(load_backbone(CACHE.backbone, CACHE.weights))


@pytest.fixture(scope="module")
def whole(backbone: Backbone, photos: NDArray[np.uint8]) -> Detector:
    """All patches of the four normals are kept."""
    return fit(backbone, photos, PatchCoreSettings(coreset=1.0))


@pytest.fixture(scope="module")
def whitened(backbone: Backbone, photos: NDArray[np.uint8]) -> Detector:
    """The same, with the Mahalanobis distance."""
    return fit(backbone, photos, PatchCoreSettings(coreset=1.0, whitened=True))


def fit(backbone: Backbone, photos: NDArray[np.uint8], settings: PatchCoreSettings, seed: int = 0) -> Detector:
    recipe = recipe_of(CACHE.backbone, settings)
    embeddings = embed_normals(backbone, recipe, list(photos[:4]), 4, seed)
    found = fit_normals(embeddings, recipe, backbone.device, seed)
    assert found.gaussian is None
    fitted = Fitted(recipe, backbone, {}, found.projection, found.references)
    weights = load_backbone(CACHE.backbone).state_dict()
    evidence = join(fitted.each(photos[2:4], as_it_is))
    unseen = Unseen(evidence, np.zeros(2, bool), np.arange(2))
    calibration, _ = calibrate(recipe, unseen, (), CACHE.image_size, settings.false_alarms)
    return Detector(CACHE, Levels(), asdict(settings), weights, fitted, calibration)


def patches_of(backbone: Backbone, photos: NDArray[np.uint8]) -> Tensor:
    """(N,64,E) float64: the embeddings of the patches of images."""
    with torch.inference_mode():
        pixels = backbone.normalise(torch.from_numpy(photos).permute(0, 3, 1, 2))
        patches = patch_embedding(backbone.activations(pixels, ("blocks.2", "blocks.4")), (8, 8), 3)
    return patches.permute(0, 2, 3, 1).flatten(1, 2).double()


def test_the_score_is_the_largest_distance_to_the_nearest_normal_patch(
    backbone: Backbone, whole: Detector, photos: NDArray[np.uint8]
) -> None:
    flat = patches_of(backbone, photos)
    distances = torch.cdist(flat[4:].flatten(0, 1), flat[:4].flatten(0, 1)).amin(1).view(2, PATCHES)
    scores = whole.score(list(photos))
    assert whole.fitted.references.coreset.shape[0] == 4 * PATCHES
    np.testing.assert_allclose(scores.image["patchcore"][:4], 0, atol=1e-4)
    np.testing.assert_allclose(scores.image["patchcore"][4:], distances.amax(1).numpy(), rtol=1e-4)
    assert np.array_equal(whole.decision_scores(scores), scores.image["patchcore"])


def test_whitened_patches_vary_alike_in_the_directions_that_hold_the_variance(
    backbone: Backbone, whitened: Detector, photos: NDArray[np.uint8]
) -> None:
    flat = patches_of(backbone, photos)
    normal, projection = flat[:4].flatten(0, 1), whitened.fitted.projection
    assert projection is not None and 1 < projection.shape[1] < normal.shape[1]
    pca = PCA(0.99, svd_solver="full").fit(normal.numpy())
    assert projection.shape[1] == pca.n_components_
    # The metric is that of the principal directions, whose variances are shrunk towards their mean by Ledoit-Wolf.
    kept = normal - normal.mean(0)
    kept = kept @ torch.from_numpy(pca.components_.T)
    shrunk = LedoitWolf(assume_centered=True).fit(kept.numpy()).covariance_
    metric = pca.components_.T @ np.linalg.inv(shrunk) @ pca.components_
    offsets = (flat[4:, None] - flat[0]).flatten(0, 2)[::13].numpy()
    expected = np.sqrt(np.einsum("nd,de,ne->n", offsets, metric, offsets))
    found = torch.from_numpy(offsets) @ projection.double()
    np.testing.assert_allclose(found.norm(dim=1), expected, rtol=1e-3)


def test_the_whitened_score_is_the_largest_mahalanobis_distance_to_the_nearest_normal_patch(
    backbone: Backbone, whitened: Detector, photos: NDArray[np.uint8]
) -> None:
    assert whitened.fitted.projection is not None
    flat = patches_of(backbone, photos) @ whitened.fitted.projection.double()
    distances = torch.cdist(flat[4:].flatten(0, 1), flat[:4].flatten(0, 1)).amin(1).view(2, PATCHES)
    scores = whitened.score(list(photos))
    assert set(scores.image) == {"patchcore-whitened"}
    np.testing.assert_allclose(scores.image["patchcore-whitened"][:4], 0, atol=1e-3)
    np.testing.assert_allclose(scores.image["patchcore-whitened"][4:], distances.amax(1).numpy(), rtol=1e-3)
    assert np.array_equal(whitened.decision_scores(scores), scores.image["patchcore-whitened"])


def test_maps_are_high_where_the_image_is_not_normal(whole: Detector, photos: NDArray[np.uint8]) -> None:
    broken = photos[0].copy()
    broken[40:56, 8:24] = 255 - broken[40:56, 8:24]
    normal, anomalous = whole.score([photos[0], broken]).maps
    assert normal.shape == (64, 64) and normal.dtype == np.float32
    assert abs(normal).max() < 1e-3 < anomalous.max()
    y, x = np.unravel_index(anomalous.argmax(), anomalous.shape)
    assert 32 <= y < 64 and x < 32


def test_a_coreset_is_the_asked_share_and_its_seed_decides_it(backbone: Backbone, photos: NDArray[np.uint8]) -> None:
    first, same, other = (
        fit(backbone, photos, PatchCoreSettings(coreset=0.1), seed).fitted.references.coreset for seed in (0, 0, 1)
    )
    assert len(first) == round(0.1 * 4 * PATCHES)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_batches_make_no_difference(whole: Detector, photos: NDArray[np.uint8]) -> None:
    many = [photos[i % 6] for i in range(20)]
    together = whole.score(many).image["patchcore"]
    np.testing.assert_allclose(together[17], whole.score([photos[5]]).image["patchcore"][0], rtol=1e-5)


def test_the_threshold_is_of_the_normals_held_out(whole: Detector, photos: NDArray[np.uint8]) -> None:
    assert whole.threshold == pytest.approx(whole.score(list(photos[2:4])).image["patchcore"].max())


@pytest.mark.parametrize("arm", ["whole", "whitened"])
def test_its_detector_is_saved_and_loaded_as_any_other(
    arm: str, request: pytest.FixtureRequest, photos: NDArray[np.uint8], tmp_path: Path
) -> None:
    detector: Detector = request.getfixturevalue(arm)
    detector.save(tmp_path / "detector.pt")
    loaded = Detector.load(tmp_path, "cpu")
    assert loaded.recipe == detector.recipe and loaded.calibration == detector.calibration
    scores = detector.score(photos)
    deciding = detector.decision_scores(scores)
    for i, prediction in enumerate(loaded.predict(list(photos))):
        assert prediction.score == round(float(deciding[i]), 4) and np.array_equal(prediction.map, scores.maps[i])
        assert prediction.anomalous == (prediction.score > detector.threshold == prediction.threshold)


@pytest.mark.slow
@pytest.mark.parametrize("whitened", [False, True])
def test_its_run_folder_is_one_of_train(whitened: bool, small_cache: SmallCache, tmp_path: Path) -> None:
    settings = PatchCoreSettings(coreset=0.02, whitened=whitened)
    run = open_run(small_cache.store, tmp_path, settings, categories=["poly"], execution=Execution(device="cpu"))
    cells = train(run, (0, 1)).cells
    assert [(cell.seed, cell.n_train, cell.n_test) for cell in cells] == [(0, 5, 7), (1, 5, 7)]
    arm = "patchcore-whitened" if whitened else "patchcore"
    assert all(cell.scorers == {arm: cell.metrics["image_auroc"]} for cell in cells)
    assert {path.name for path in (tmp_path / "poly/seed-1").iterdir()} == {
        "cell.json",
        "detector.pt",
        "made_of.json",
        "maps.png",
        "normals.csv",
        "scores.csv",
        "scores.png",
    }
    assert train(run, (0, 1)).cells == cells
    other = replace(settings, coreset=0.03)
    with pytest.raises(Exception, match=r"train.coreset: 0.03 now, 0.02 then"):
        train(replace(run, settings=other))
