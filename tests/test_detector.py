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
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.data.images import Decoding, decode_rgb
from pipeline.data.levels import Levels
from pipeline.errors import UserError
from pipeline.settings import PrecomputeSettings
from train.calibration import Calibration, Unseen, calibrate
from train.detector import Detector
from train.features.extract import as_it_is, pooled_embedding
from train.localiser.network import Localiser
from train.prediction import Scores
from train.recipe import recipe_of
from train.scorers.cells import CellScale
from train.scorers.fit import OfNormals, embed_normals, fit_normals
from train.scorers.fitted import Fitted, join
from train.scorers.maps import smooth_maps, top_mean
from train.settings import FinetuneSettings, Settings, TrainSettings

SIZE = 64
CACHE = PrecomputeSettings(image_size=SIZE, stages=("blocks.1", "blocks.2", "blocks.4", "blocks.6"))
SETTINGS = TrainSettings(coreset=60, false_alarms=0.3)
UNTRAINED = replace(SETTINGS, negatives="none")
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
        return [decode_rgb(file.read_bytes(), Decoding(SIZE, "stretch", None), file.name) for file in files]

    normal, defective = elpv["mono"]
    return Cells(read(normal[:24]), read(normal[24:34]), read([*normal[34:38], *defective[:4]]))


@pytest.fixture(scope="module")
def plain() -> Backbone:
    return load_backbone(CACHE.backbone)


@pytest.fixture(scope="module")
def pretrained(plain: Backbone) -> Backbone:
    return for_inference(plain)


def fit_to(backbone: Backbone, images: Images) -> OfNormals:
    return fit_normals(embed_normals(backbone, RECIPE, images, len(images), 0), RECIPE, backbone.device, 0)


@pytest.fixture(scope="module")
def normals(pretrained: Backbone, cells: Cells) -> OfNormals:
    return fit_to(pretrained, cells.normals)


@pytest.fixture(scope="module")
def localiser(pretrained: Backbone) -> Localiser:
    """As it is before training, but for a last layer that tells the cells of an image apart."""
    torch.manual_seed(0)
    network = Localiser(pretrained)
    torch.nn.init.normal_(network.head[-1].weight, std=2.0)  # type: ignore[arg-type]
    return network.eval().requires_grad_(False)


def fitted_to(normals: OfNormals, pretrained: Backbone, settings: Settings, localiser: Localiser | None) -> Fitted:
    assert normals.gaussian is not None
    scorers, recipe = {"gaussian": normals.gaussian}, recipe_of(CACHE.backbone, settings)
    return Fitted(recipe, pretrained, scorers, normals.projection, normals.references, localiser)


def calibrated(fitted: Fitted, plain: Backbone, cells: Cells, settings: Settings) -> Detector:
    negatives = [np.ascontiguousarray(image[::-1]) for image in cells.held_out]
    found, of_negatives = join(fitted.each(cells.held_out, as_it_is)), fitted.each(negatives, as_it_is)
    count = len(cells.held_out)
    unseen = Unseen(found, np.zeros(count, bool), np.arange(count))
    calibration, _ = calibrate(fitted.recipe, unseen, of_negatives, SIZE, settings.false_alarms)
    return Detector(CACHE, Levels(), asdict(settings), plain.state_dict(), fitted, calibration)


@pytest.fixture(scope="module")
def untrained(normals: OfNormals, pretrained: Backbone, plain: Backbone, cells: Cells) -> Detector:
    return calibrated(fitted_to(normals, pretrained, UNTRAINED, None), plain, cells, UNTRAINED)


@pytest.fixture(scope="module")
def trained(normals: OfNormals, pretrained: Backbone, localiser: Localiser, plain: Backbone, cells: Cells) -> Detector:
    return calibrated(fitted_to(normals, pretrained, SETTINGS, localiser), plain, cells, SETTINGS)


@pytest.fixture(scope="module")
def finetuned(normals: OfNormals, pretrained: Backbone, plain: Backbone, cells: Cells) -> Detector:
    """With a backbone that is another one than the pretrained, as after training."""
    settings, weights = FinetuneSettings(), load_backbone(CACHE.backbone)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in weights.stages[-1].parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    backbone = for_inference(weights)
    again = fit_to(backbone, cells.normals)
    assert again.gaussian is not None
    fitted = fitted_to(normals, pretrained, settings, None)
    fitted = replace(fitted, scorers={"finetuned": again.gaussian}, finetuned=backbone)
    return calibrated(fitted, plain, cells, settings)


@pytest.fixture(scope="module")
def scores(trained: Detector, cells: Cells) -> Scores:
    return trained.score(cells.tested)


# --- scores -------------------------------------------------------------------------------------------------------


def test_every_scorer_gives_a_finite_score_an_image(
    scores: Scores, untrained: Detector, finetuned: Detector, cells: Cells
) -> None:
    without, other = (detector.score(cells.tested) for detector in (untrained, finetuned))
    assert set(scores.image) == {"gaussian", "patches", "cells", "localiser", "largest", "sum", "untrained"}
    assert set(without.image) == {"gaussian", "patches", "largest", "sum"}
    assert set(other.image) == {"finetuned", "patches"}
    for found in (scores, without, other):
        assert all(values.shape == (8,) and values.dtype == np.float64 for values in found.image.values())
        assert all(np.isfinite(values).all() for values in found.image.values())
        assert found.maps.shape == (8, SIZE, SIZE) and found.maps.dtype == np.float32 and (found.maps >= 0).all()


def test_the_fusions_are_of_members_standardised_by_held_out_normals(
    trained: Detector, untrained: Detector, scores: Scores, cells: Cells
) -> None:
    for detector, names in ((trained, ("gaussian", "cells")), (untrained, ("gaussian", "patches"))):
        held_out, image = detector.score(cells.held_out).image, detector.score(cells.tested).image
        expected = np.stack([(image[n] - held_out[n].mean()) / held_out[n].std(ddof=1) for n in names])
        np.testing.assert_allclose(image["largest"], expected.max(0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(image["sum"], expected.sum(0), rtol=1e-6, atol=1e-6)


def logits_of(detector: Detector, images: Images) -> NDArray[np.float32]:
    """(N,8,8) of the localiser, on the frozen stage before stride 8."""
    localiser, backbone = detector.fitted.localiser, detector.fitted.pretrained
    assert localiser is not None and localiser.input_stage == "blocks.1"
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found: NDArray[np.float32] = localiser(
            backbone.activations(backbone.normalise(pixels), ("blocks.1",))[0]
        ).numpy()
    return found


def test_cells_are_distances_that_logits_above_those_of_normals_raise(
    trained: Detector, untrained: Detector, scores: Scores, cells: Cells
) -> None:
    found = [next(trained.fitted.each([image], lambda image: image)) for image in (*cells.held_out, *cells.tested)]
    distances = np.concatenate([one.distances.numpy() for one in found]).astype("f8")
    logits = logits_of(trained, [*cells.held_out, *cells.tested]).astype("f8")
    held = len(cells.held_out)
    bound = np.quantile(logits[:held], 0.99)
    assert (logits > bound).any((1, 2))[held:].any()
    expected = distances / distances[:held].std() + 2 * (logits - bound).clip(0)
    # 2 % of 64 cells are one.
    highest = expected.max((1, 2))
    np.testing.assert_allclose(scores.image["cells"], highest[held:], rtol=1e-4, atol=1e-4)
    most = logits[held:].max((1, 2))
    np.testing.assert_allclose(scores.image["localiser"], most, rtol=1e-4, atol=1e-4)
    assert trained.calibration.cells.bound == pytest.approx(bound, rel=1e-4)
    # Without a localiser they are the distances.
    patches = untrained.score(cells.tested).image["patches"]
    np.testing.assert_allclose(distances[held:].max((1, 2)), patches, rtol=1e-4)


def test_a_patch_is_measured_in_the_whitened_space_of_its_stage(untrained: Detector, cells: Cells) -> None:
    fitted = untrained.fitted
    assert fitted.projection is not None and fitted.projection.shape == (112, 112)
    with torch.inference_mode():
        images = torch.from_numpy(np.stack(cells.tested)).permute(0, 3, 1, 2)
        pixels = fitted.pretrained.normalise(images)
        stage = fitted.pretrained.activations(pixels, ("blocks.4",))[0].float()
    averaged = torch.nn.functional.avg_pool2d(stage, 3, 1, 1, count_include_pad=False)
    flat = averaged.permute(0, 2, 3, 1).flatten(0, 2).double()
    nearest = torch.cdist(flat @ fitted.projection.double(), fitted.references.coreset.double()).amin(1)
    distances = fitted.distances(averaged)
    np.testing.assert_allclose(distances.flatten(), nearest, rtol=1e-4)
    # The grid of cells is one stride finer: 64 of them in place of 16.
    finer = torch.nn.functional.interpolate(distances[:, None], (8, 8), mode="bilinear")[:, 0]
    expected = top_mean(finer, RECIPE.top_share)
    np.testing.assert_allclose(untrained.score(cells.tested).image["patches"], expected, rtol=1e-3)


def test_the_untrained_score_is_that_of_the_detector_without_its_localiser(
    untrained: Detector, cells: Cells, scores: Scores
) -> None:
    without = untrained.score(cells.tested).image
    for name in ("gaussian", "patches"):
        np.testing.assert_array_equal(without[name], scores.image[name])
    np.testing.assert_allclose(scores.image["untrained"], without["largest"], rtol=1e-9)
    assert not np.allclose(scores.image["largest"], scores.image["untrained"], rtol=1e-2)


def test_a_sum_is_compared_with_a_sum_and_a_single_scorer_with_nothing(trained: Detector, cells: Cells) -> None:
    held_out, tested = trained.score(cells.held_out).image, trained.score(cells.tested).image
    for scorer in ("sum", "cells"):
        recipe = replace(trained.recipe, deciding_score=scorer)
        image = replace(trained, fitted=replace(trained.fitted, recipe=recipe)).score(cells.tested).image
        assert ("untrained" in image) is (scorer == "sum")
        if scorer == "sum":
            names = ("gaussian", "patches")
            expected = sum((tested[n] - held_out[n].mean()) / held_out[n].std(ddof=1) for n in names)
            np.testing.assert_allclose(image["untrained"], expected, rtol=1e-6, atol=1e-6)


def test_finetuned_is_the_distance_in_the_backbone_that_was_trained(finetuned: Detector, cells: Cells) -> None:
    backbone, recipe = finetuned.fitted.finetuned, finetuned.recipe
    assert backbone is not None
    with torch.inference_mode():
        pixels = backbone.normalise(torch.from_numpy(np.stack(cells.tested)).permute(0, 3, 1, 2))
        embedding = pooled_embedding(backbone.activations(pixels, recipe.embedding_stages), recipe.pooling)
    image = finetuned.score(cells.tested).image
    expected = finetuned.fitted.scorers["finetuned"].scores(embedding)
    np.testing.assert_allclose(image["finetuned"], expected, rtol=1e-3)
    np.testing.assert_array_equal(finetuned.decision_scores(Scores(image, np.empty(0, "f4"))), image["finetuned"])


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
    for name in ("gaussian", "patches", "largest", "sum"):
        assert np.median(fitted[name]) < tested[name][4:].min(), name


def test_a_map_rises_where_a_patch_is_unlike_the_normals(untrained: Detector) -> None:
    fitted = untrained.fitted
    assert fitted.projection is not None
    coreset = fitted.references.coreset @ torch.linalg.inv(fitted.projection)
    patches = coreset[torch.arange(2 * 8 * 8) % len(coreset)].view(2, 8, 8, -1).permute(0, 3, 1, 2).clone()
    patches[1, :, 5, 2] += 10
    same, unlike = smooth_maps(fitted.distances(patches), SIZE, RECIPE.blur).numpy()
    np.testing.assert_allclose(same, 0, atol=1e-2)
    # Cell (5, 2) of 8 x 8 covers the pixels (40..47, 16..23).
    y, x = np.unravel_index(unlike.argmax(), unlike.shape)
    assert 40 <= y < 48 and 16 <= x < 24
    assert unlike[:24].max() < 1e-2 < 1 < unlike.max()


def test_a_map_rises_where_the_localiser_accuses(trained: Detector, cells: Cells) -> None:
    found = next(trained.fitted.each(cells.tested[:1], lambda image: image))
    assert found.logits is not None
    logits = torch.full_like(found.logits, trained.calibration.cells.bound - 5)
    accused = logits.clone()
    accused[0, 5, 2] = trained.calibration.cells.bound + 5
    maps = [trained.judge(replace(found, logits=some))[1][0].numpy() for some in (logits, accused)]
    rise = maps[1] - maps[0]
    y, x = np.unravel_index(rise.argmax(), rise.shape)
    assert 40 <= y < 48 and 16 <= x < 24 and rise.max() > 1
    np.testing.assert_allclose(rise[:24], 0, atol=1e-4)


def test_a_score_that_is_not_finite_is_an_error(trained: Detector, cells: Cells) -> None:
    scale = trained.fitted.scorers["gaussian"]
    broken = replace(trained.fitted, scorers={"gaussian": replace(scale, mean=scale.mean * np.nan)})
    with pytest.raises(ValueError, match="not finite"):
        replace(trained, fitted=broken).score(cells.tested[:1])


# --- the threshold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scorer", "false_alarms"), [("largest", 0.01), ("sum", 0.3), ("gaussian", 0.55)])
def test_the_threshold_flags_at_most_the_share_asked_for(
    normals: OfNormals, pretrained: Backbone, plain: Backbone, cells: Cells, scorer: str, false_alarms: float
) -> None:
    settings = replace(UNTRAINED, scorer=scorer, false_alarms=false_alarms)
    detector = calibrated(fitted_to(normals, pretrained, settings, None), plain, cells, settings)
    deciding = detector.decision_scores(detector.score(cells.held_out))
    # Of ten normals one less than the whole part of 11 times the share, as no two of their scores are the same.
    assert (deciding > detector.threshold).sum() == max(0, int(false_alarms * 11) - 1)
    assert detector.calibration.normal_scores == tuple(sorted(round(score, 4) for score in deciding.tolist()))


def test_the_threshold_is_on_the_scale_of_the_scorer_that_decides(trained: Detector, cells: Cells) -> None:
    held_out = trained.score(cells.held_out)
    assert held_out.image["largest"].min() <= trained.threshold <= held_out.image["largest"].max()
    np.testing.assert_array_equal(trained.decision_scores(held_out), held_out.image["largest"])


def test_the_range_of_maps_is_that_of_the_held_out_normals(trained: Detector, cells: Cells) -> None:
    maps = trained.score(cells.held_out).maps
    low, high = trained.calibration.map_range
    medians = [float(torch.from_numpy(one).median()) for one in maps]
    assert low == pytest.approx(np.median(medians)) and high == pytest.approx(maps.max())


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["trained", "untrained", "finetuned"])
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
    assert content["format"] == 7 and content["settings"]["coreset"] == 60


def test_a_detector_of_format_6_opens_without_the_scores_of_its_normals(
    trained: Detector, cells: Cells, tmp_path: Path
) -> None:
    trained.save(tmp_path / "detector.pt")
    content = torch.load(tmp_path / "detector.pt", weights_only=True)
    for name in ("normal_scores", "map_threshold"):
        del content[name]
    torch.save({**content, "format": 6}, tmp_path / "detector.pt")
    old, images = Detector.load(tmp_path, "cpu"), list(cells.held_out[:2])
    assert old.calibration.map_threshold == trained.calibration.map_range[1]
    for then, now in zip(old.predict(images), trained.predict(images), strict=True):
        assert (then.score, then.threshold, then.anomalous) == (now.score, now.threshold, now.anomalous)
        assert then.p_value is None and now.p_value is not None and 1 / 11 <= now.p_value <= 1


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
    state["recipe"]["directions"] = 64
    torch.save(state, tmp_path / "detector.pt")
    with pytest.raises(UserError, match=r"rules of another version \(directions\)") as caught:
        Detector.load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("score", "anomalous"), [(3.00004, False), (2.9, False), (3.0001, True), (3.2, True)])
def test_the_last_bits_of_a_score_decide_nothing(score: float, anomalous: bool) -> None:
    calibration = Calibration(CellScale(), {}, (0.0, 1.0), 1.0, 3.00003, ())
    assert calibration.exceeds(score) is anomalous
