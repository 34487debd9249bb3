import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.datasets import load
from pipeline.data.images import Decoding
from pipeline.data.levels import Levels
from pipeline.data.samples import Sample
from pipeline.errors import ImageError
from train.evaluate import Evaluation, evaluate
from train.evaluation.metrics import METRICS
from train.evaluation.test_set import TestSet
from train.prediction import Scores

SIZE = 32
DECODING = Decoding(SIZE, "stretch", Levels())


@dataclass(frozen=True)
class Brightness:
    """A detector by eye: what is bright is anomalous; `mean` and `max` are its scorers, and `mean` decides."""

    threshold: float = 100.0
    calibration: Any = None  # of which only the plots read anything

    def score_items(self, items: Iterable[int], load: Callable[[int], NDArray[np.uint8]]) -> Scores:
        maps = np.stack([load(item).mean(2, dtype=np.float32) for item in items])
        return Scores({"mean": maps.mean((1, 2), np.float64), "max": maps.max((1, 2)).astype(np.float64)}, maps)

    def decision_scores(self, scores: Scores) -> NDArray[np.float64]:
        return scores.image["mean"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise to test on: good images, cracks with masks but for the last one, and spots without any."""
    folder, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(0)
    for name, count, shift in (("train/good", 1, 0), ("test/good", 9, 0), ("test/crack", 5, 30), ("test/spot", 4, 5)):
        (folder / "parts" / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 150, (SIZE, SIZE), np.uint8)
            image[4:9, 2 + i : 6 + i] += shift
            Image.fromarray(image).save(folder / f"parts/{name}/{i}.png")
    (folder / "parts/ground_truth/crack").mkdir(parents=True)
    for i in range(4):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[4:9, 2 + i : 6 + i] = 255
        Image.fromarray(mask).save(folder / f"parts/ground_truth/crack/{i}_mask.png")
    return folder


@pytest.fixture(scope="module")
def samples(root: Path) -> tuple[Sample, ...]:
    return load("folder", str(root)).categories[0].test


def measured(root: Path, samples: Sequence[Sample]) -> Evaluation:
    detector: Any = Brightness()
    return evaluate(detector, TestSet(str(root), samples, DECODING))


def test_a_class_of_defect_is_measured_as_if_it_were_the_only_one(root: Path, samples: tuple[Sample, ...]) -> None:
    found = measured(root, samples)
    assert {name: result.n for name, result in found.by_defect.items()} == {"crack": 5, "spot": 4}
    for defect, result in found.by_defect.items():
        alone = [sample for sample in samples if sample.defect in ("good", defect)]
        assert result.metrics == pytest.approx(measured(root, alone).metrics, abs=1e-12)
        assert list(result.metrics) == [metric.name for metric in METRICS]
    crack, spot = (found.by_defect[name].metrics for name in ("crack", "spot"))
    assert None not in crack.values() and spot["pixel_auroc"] is spot["aupro"] is None
    assert crack != found.metrics


def test_an_image_whose_anomaly_has_no_place_takes_no_part_in_the_maps(root: Path, samples: tuple[Sample, ...]) -> None:
    found = measured(root, samples).metrics
    placed = measured(root, [sample for sample in samples if not sample.label or sample.masks])
    for metric in METRICS:
        assert (found[metric.name] == placed.metrics[metric.name]) is metric.needs_masks


def test_without_masks_only_images_are_measured(root: Path, samples: tuple[Sample, ...]) -> None:
    found = measured(root, [replace(sample, masks=()) for sample in samples])
    for metrics in (found.metrics, *(result.metrics for result in found.by_defect.values())):
        assert {name for name, value in metrics.items() if value is None} == {"pixel_auroc", "aupro"}
    assert found.scorers["mean"] == found.metrics["image_auroc"] != found.scorers["max"]


def test_images_and_masks_are_decoded_once_as_far_as_memory_goes(tmp_path: Path, root: Path) -> None:
    copied = shutil.copytree(root, tmp_path / "copy")
    samples = load("folder", str(copied)).categories[0].test
    two_images = 2 * 3 * SIZE**2
    tests = TestSet(str(copied), samples, DECODING, memory=two_images)
    before, masks = [tests.image(i) for i in range(3)], tests.masks
    shutil.rmtree(copied)
    assert all(np.array_equal(tests.image(i), before[i]) for i in range(2))
    assert np.array_equal(tests.masks, masks)
    with pytest.raises(ImageError):
        tests.image(2)
