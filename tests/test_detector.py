import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import load_backbone
from pipeline.data.images import decode_rgb
from pipeline.errors import UserError
from pipeline.settings import PrecomputeSettings
from train.calibration import calibrate
from train.detector import Detector, Scores
from train.features.network import CutSwapNetwork
from train.recipe import recipe_of
from train.scorers.contrast import Contrast
from train.scorers.fit import fit_scorers
from train.scorers.fitted import Fitted
from train.scorers.maps import smooth_maps, top_mean
from train.scorers.normals import Normals, embed_normals
from train.settings import TrainSettings

SIZE = 64
CACHE = PrecomputeSettings(image_size=SIZE, stages=("blocks.1", "blocks.2", "blocks.4", "blocks.6"))
SETTINGS = TrainSettings(proxy="levels", coreset=60, false_alarms=0.3, scorer="sum")
RECIPE = recipe_of(CACHE.backbone, SETTINGS)
Images = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Cells:
    """Solar cells: normals to fit to, normals held out, and normal and defective ones to test."""

    normals: Images
    held_out: Images
    tested: Images


@pytest.fixture(scope="module")
def cells(elpv: dict[str, tuple[list[Path], list[Path]]]) -> Cells:
    def read(files: Sequence[Path]) -> Images:
        return [decode_rgb(file.read_bytes(), SIZE, "stretch", file.name) for file in files]

    normal, defective = elpv["mono"]
    return Cells(read(normal[:24]), read(normal[24:34]), read([*normal[34:38], *defective[:4]]))


@pytest.fixture(scope="module")
def normals(cells: Cells) -> Normals:
    return embed_normals(
        for_inference(load_backbone(CACHE.backbone)), RECIPE, cells.normals, np.arange(len(cells.normals)), 0
    )


def fit_untrained(normals: Normals, cells: Cells, settings: TrainSettings = SETTINGS) -> Detector:
    settings = replace(settings, negatives="none")
    recipe = recipe_of(CACHE.backbone, settings)
    return calibrated(
        fit_scorers(recipe, for_inference(load_backbone(CACHE.backbone)), None, None, normals, 0), cells, settings
    )


def calibrated(fitted: Fitted, cells: Cells, settings: TrainSettings) -> Detector:
    weights = load_backbone(CACHE.backbone).state_dict()
    return Detector(CACHE, asdict(settings), weights, fitted, calibrate(fitted, cells.held_out, settings.false_alarms))


@pytest.fixture(scope="module")
def untrained(normals: Normals, cells: Cells) -> Detector:
    return fit_untrained(normals, cells)


@pytest.fixture(scope="module")
def trained(normals: Normals, cells: Cells) -> Detector:
    """With a network whose backbone is another one than the pretrained, as after training, and negatives seen.

    The negatives have their upper left quarter turned over.
    """
    pretrained, copy = for_inference(load_backbone(CACHE.backbone)), load_backbone(CACHE.backbone)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in copy.stages[-1].parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    network = CutSwapNetwork(copy, RECIPE, 1 + len(CACHE.stages), frozen=False).eval()
    network.whitening.fit(normals.gaussian.mean, normals.gaussian.factor)
    contrast = Contrast(pretrained, RECIPE, normals, 0)
    images = torch.from_numpy(np.stack(cells.normals)).permute(0, 3, 1, 2).float()
    negatives = images.clone()
    negatives[:, :, :32, :32] = images[:, :, :32, :32].flip(2)
    changed = torch.zeros(len(images), SIZE, SIZE, dtype=torch.bool)
    changed[:, :32, :32] = True
    contrast.update(torch.cat([images, negatives]), changed, torch.from_numpy(normals.rows))
    return calibrated(fit_scorers(RECIPE, pretrained, network, contrast, normals, 0), cells, SETTINGS)


@pytest.fixture(scope="module")
def scores(trained: Detector, cells: Cells) -> Scores:
    return trained.score(cells.tested)


# --- scores -------------------------------------------------------------------------------------------------------


def test_every_scorer_gives_a_finite_score_an_image(scores: Scores, untrained: Detector, cells: Cells) -> None:
    without_head = untrained.score(cells.tested)
    assert set(scores.image) == {"untrained", "embedding", "patches", "gde", "knn", "head", "sum"}
    assert set(without_head.image) == {"untrained", "embedding", "patches", "gde", "knn", "sum"}
    for found in (scores, without_head):
        assert all(values.shape == (8,) and values.dtype == np.float64 for values in found.image.values())
        assert all(np.isfinite(values).all() for values in found.image.values())
        assert found.maps.shape == (8, SIZE, SIZE) and found.maps.dtype == np.float32 and (found.maps >= 0).all()


def test_head_is_the_log_odds_of_a_negative(trained: Detector, scores: Scores, cells: Cells) -> None:
    network = trained.fitted.network
    assert network is not None
    with torch.no_grad():
        logits = network(torch.from_numpy(np.stack(cells.tested)).permute(0, 3, 1, 2))
    normal = logits.double().softmax(1)[:, 0].numpy()
    np.testing.assert_allclose(scores.image["head"], np.log((1 - normal) / normal), rtol=1e-4, atol=1e-4)


def test_the_sum_adds_three_distances_each_standardised_by_held_out_normals(
    trained: Detector, scores: Scores, cells: Cells
) -> None:
    held_out = trained.score(cells.held_out).image
    expected = np.zeros(8)
    for name in ("untrained", "embedding", "patches"):
        expected += (scores.image[name] - held_out[name].mean()) / held_out[name].std(ddof=1)
    np.testing.assert_allclose(scores.image["sum"], expected, rtol=1e-3, atol=1e-3)


def test_without_training_every_direction_weighs_the_same(untrained: Detector, cells: Cells) -> None:
    image = untrained.score(cells.tested).image
    np.testing.assert_array_equal(image["gde"], image["untrained"])
    np.testing.assert_array_equal(image["embedding"], image["untrained"])
    assert untrained.fitted.projection is None


def test_negatives_change_what_counts(untrained: Detector, trained: Detector, cells: Cells, scores: Scores) -> None:
    before = untrained.score(cells.tested).image
    projection = trained.fitted.projection
    assert projection is not None and projection.shape[1] <= 64
    # No direction counts more than before, and some count less.
    assert (scores.image["embedding"] < before["untrained"]).all()
    assert not np.allclose(scores.image["patches"], before["patches"], rtol=0.01)


def test_a_patch_score_is_the_mean_of_the_highest_cells() -> None:
    distances = torch.arange(128.0).view(2, 8, 8)
    # 8 % of 64 cells are five.
    assert top_mean(distances, RECIPE.top_share).tolist() == [61, 125]
    assert top_mean(distances[:, :1, :2], RECIPE.top_share).tolist() == [1, 65]
    assert top_mean(distances, 0).tolist() == [63, 127]


def test_the_untrained_score_does_not_depend_on_training(
    untrained: Detector, trained: Detector, cells: Cells, scores: Scores
) -> None:
    np.testing.assert_allclose(untrained.score(cells.tested).image["untrained"], scores.image["untrained"], rtol=1e-4)
    assert not np.allclose(scores.image["gde"], scores.image["untrained"], rtol=1e-3)


def test_a_score_does_not_depend_on_the_batch(trained: Detector, cells: Cells, scores: Scores) -> None:
    # 22 images are more than one batch.
    many = trained.score([*cells.held_out, *cells.tested, *cells.normals[:4]])
    alone = [trained.score([image]) for image in cells.tested]
    for name, values in scores.image.items():
        np.testing.assert_allclose(many.image[name][10:18], values, rtol=2e-3, atol=2e-3, err_msg=name)
        np.testing.assert_allclose([s.image[name][0] for s in alone], values, rtol=2e-3, atol=2e-3, err_msg=name)
    np.testing.assert_allclose(many.maps[10:18], scores.maps, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.concatenate([s.maps for s in alone]), scores.maps, rtol=1e-3, atol=1e-3)


def test_normals_fitted_to_lie_nearer_than_defects(untrained: Detector, cells: Cells) -> None:
    fitted = untrained.score(cells.normals).image
    tested = untrained.score(cells.tested).image
    for name in ("untrained", "knn", "sum"):
        assert np.median(fitted[name]) < tested[name][4:].min(), name


def test_a_map_rises_where_a_patch_is_unlike_the_normals(untrained: Detector) -> None:
    coreset = untrained.fitted.references.coreset
    patches = coreset[torch.arange(2 * 8 * 8) % len(coreset)].view(2, 8, 8, -1).permute(0, 3, 1, 2).clone()
    patches[1, :, 5, 2] += 10
    same, unlike = smooth_maps(untrained.fitted.distances(patches), SIZE, RECIPE.blur).numpy()
    np.testing.assert_allclose(same, 0, atol=1e-3)
    # Cell (5, 2) of 8 x 8 covers the pixels (40..47, 16..23).
    y, x = np.unravel_index(unlike.argmax(), unlike.shape)
    assert 40 <= y < 48 and 16 <= x < 24
    assert unlike[:24].max() < 1e-3 < unlike.max()


# --- the threshold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scorer", "false_alarms"), [("sum", 0.01), ("sum", 0.3), ("knn", 0.55)])
def test_the_threshold_flags_at_most_the_share_asked_for(
    normals: Normals, cells: Cells, scorer: str, false_alarms: float
) -> None:
    settings = replace(SETTINGS, scorer=scorer, false_alarms=false_alarms, coreset=1)
    detector = fit_untrained(normals, cells, settings)
    deciding = detector.decision_scores(detector.score(cells.held_out))
    # Of ten normals the whole part of the share, as no two of their scores are the same.
    assert (deciding > detector.threshold).sum() == int(false_alarms * 10)


def test_the_threshold_is_on_the_scale_of_the_scorer_that_decides(trained: Detector, cells: Cells) -> None:
    held_out = trained.score(cells.held_out)
    assert held_out.image["sum"].min() <= trained.threshold <= held_out.image["sum"].max()
    np.testing.assert_array_equal(trained.decision_scores(held_out), held_out.image["sum"])
    low, high = trained.calibration.map_range
    assert low == pytest.approx(np.median(held_out.maps)) and high == pytest.approx(held_out.maps.max())


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["trained", "untrained"])
def test_a_saved_detector_gives_identical_scores(
    arm: str, cells: Cells, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    detector: Detector = request.getfixturevalue(arm)
    detector.save(tmp_path / "detector.pt")
    loaded = Detector.load(tmp_path / "detector.pt", "cpu")
    assert loaded.precompute_settings == detector.precompute_settings and loaded.settings == detector.settings
    assert (loaded.recipe, loaded.calibration) == (detector.recipe, detector.calibration)
    mine, yours = detector.score(cells.tested), loaded.score(cells.tested)
    assert mine.image.keys() == yours.image.keys()
    for name, values in mine.image.items():
        np.testing.assert_array_equal(values, yours.image[name])
    np.testing.assert_array_equal(mine.maps, yours.maps)


def test_a_detector_file_holds_no_code(trained: Detector, tmp_path: Path) -> None:
    trained.save(tmp_path / "detector.pt")
    content = torch.load(tmp_path / "detector.pt", weights_only=True)
    assert content["settings"]["proxy"] == "levels" and content["classes"] == 5


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


@pytest.mark.parametrize("content", ["noise", "empty", "pickle", "harmful", "other", "newer", "folder", "missing"])
def test_another_file_is_refused_in_one_line(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "detector.pt"
    if content == "folder":
        path.mkdir()
    elif content in ("noise", "empty", "pickle"):
        path.write_bytes({"noise": b"\x93NUMPY" * 9, "empty": b"", "pickle": pickle.dumps({"format": 1}, 2)}[content])
    elif content in ("harmful", "other", "newer"):
        torch.save({"harmful": Harmful(), "other": [torch.ones(2)], "newer": {"format": 99}}[content], path)
    with pytest.raises(UserError) as caught:
        Detector.load(path, "cpu")
    assert str(path) in str(caught.value)
    assert ("no detector below" if content in ("folder", "missing") else "train again") in str(caught.value)
    assert content != "newer" or "format 99" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("harm").exists()


def test_a_detector_of_rules_that_are_not_known_is_refused(untrained: Detector, tmp_path: Path) -> None:
    untrained.save(tmp_path / "detector.pt")
    state = torch.load(tmp_path / "detector.pt", weights_only=True)
    state["recipe"]["whitening"] = True
    torch.save(state, tmp_path / "detector.pt")
    with pytest.raises(UserError, match=r"rules of another version \(whitening\)") as caught:
        Detector.load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)
