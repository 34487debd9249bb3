"""The training of the localiser, and of the arm `finetuned`."""

import copy
import csv
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO, Advance, Killed, Weights, assert_same_weights, killed_once_there, log_of, write_cache
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import train.localiser.fit
from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.cache.cache import open_cache
from pipeline.errors import UserError
from pipeline.settings import PrecomputeSettings
from pipeline.threads import CORES
from train.cell_folder import CellFolder
from train.finetune import Classifier, finetune
from train.localiser.examples import Example, make_example
from train.localiser.fit import fit_localiser
from train.localiser.labels import CHANGED, IGNORED, UNCHANGED
from train.localiser.network import Localiser
from train.negatives.stream import Normal, NormalStream
from train.recipe import recipe_of
from train.settings import FinetuneSettings, TrainSettings

CACHE = PrecomputeSettings(image_size=32, stages=("blocks.1", "blocks.4"), pairs=4, patch_area=(0.1, 0.2))
NORMALS = 24
QUICK = TrainSettings(steps=5, batch_size=2, crop=32, head_lr=0.01, backbone_lr=0.0001)
LONG = replace(QUICK, steps=55, batch_size=1)
TUNING = FinetuneSettings(steps=5, batch_size=2)
SEED = 4
Settings = TrainSettings | FinetuneSettings


@dataclass(frozen=True)
class Trained:
    """The weights that a run ended with, and its folder."""

    weights: Weights
    folder: Path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache of images that are dark above and bright below, so that most swaps show at a glance."""
    images = np.random.default_rng(0).integers(0, 40, (NORMALS, 32, 32, 3), np.uint8)
    images[:, 16:] += 200
    return write_cache(tmp_path_factory.mktemp("toy") / "cache.zarr", {"toy": images}, CACHE)


@pytest.fixture(scope="module")
def plain() -> Backbone:
    """As it is loaded; `run` trains a copy of it where it is what is trained."""
    return load_backbone(CACHE.backbone, CACHE.weights)


@pytest.fixture(scope="module")
def pretrained(plain: Backbone) -> Backbone:
    """For inference."""
    return for_inference(plain)


@pytest.fixture(scope="module", params=[QUICK, TUNING], ids=["localiser", "finetuned"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Of each of the two that are trained."""
    chosen: Settings = request.param
    return chosen


@pytest.fixture(scope="module")
def unbroken(toy: str, plain: Backbone, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A whole run of the settings."""
    folder = tmp_path_factory.mktemp("unbroken")
    return Trained(run(toy, plain, folder, settings), folder)


@pytest.fixture
def checkpoint_each_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.optimise._STEPS_BETWEEN_CHECKPOINTS", 2)


@pytest.fixture
def cores() -> Iterator[Callable[[int], None]]:
    """Changes the number of threads for one test."""
    before = CORES.count
    yield CORES.use
    CORES.use(before)


def stream(store: str) -> NormalStream:
    return NormalStream(open_cache(store)["toy"], np.arange(NORMALS))


def run(
    store: str,
    plain: Backbone,
    folder: Path,
    settings: Settings = QUICK,
    *,
    seed: int = SEED,
    resume: bool = False,
    die_at: int | None = None,
) -> Weights:
    """The weights of the localiser or of the finetuned backbone; die_at: the step that is cut off."""
    advance = Advance(die_at)
    cell = CellFolder(folder)
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    trained: nn.Module
    if isinstance(settings, TrainSettings):
        trained = fit_localiser(for_inference(plain), stream(store), settings, seed, cell, advance)
    else:
        trained = copy.deepcopy(plain)
        finetune(trained, recipe_of(CACHE.backbone, settings), stream(store), settings, seed, cell, advance)
    assert advance.done == settings.steps
    assert not trained.training and not any(parameter.requires_grad for parameter in trained.parameters())
    return {name: value.clone() for name, value in trained.state_dict().items()}


def changed(before: Weights, after: Weights) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- both: the same run again, and a run cut off ------------------------------------------------------------------


def test_a_seed_decides_every_bit(
    toy: str, plain: Backbone, settings: Settings, unbroken: Trained, tmp_path: Path
) -> None:
    assert_same_weights(run(toy, plain, tmp_path / "same", settings), unbroken.weights)
    assert log_of(tmp_path / "same") == log_of(unbroken.folder)
    assert changed(run(toy, plain, tmp_path / "other", settings, seed=SEED + 1), unbroken.weights)
    assert log_of(tmp_path / "other") != log_of(unbroken.folder)


@pytest.mark.usefixtures("checkpoint_each_2")
@pytest.mark.parametrize("die_at", [1, 3, 5])
def test_a_run_cut_off_and_resumed_ends_with_the_weights_of_an_unbroken_one(
    toy: str, plain: Backbone, settings: Settings, unbroken: Trained, tmp_path: Path, die_at: int
) -> None:
    with pytest.raises(Killed):
        run(toy, plain, tmp_path, settings, die_at=die_at)
    assert (tmp_path / "checkpoint.pt").exists() == (die_at > 2)
    torch.manual_seed(99)  # what else has drawn in between must not matter
    assert_same_weights(run(toy, plain, tmp_path, settings, resume=True), unbroken.weights)
    assert log_of(tmp_path) == log_of(unbroken.folder)


def test_the_number_of_threads_changes_no_bit(
    toy: str,
    plain: Backbone,
    settings: Settings,
    unbroken: Trained,
    tmp_path: Path,
    cores: Callable[[int], None],
) -> None:
    for count in (1, 2):
        cores(count)
        assert_same_weights(run(toy, plain, tmp_path / str(count), settings), unbroken.weights)


def test_a_finished_run_is_read_back(toy: str, plain: Backbone, settings: Settings, unbroken: Trained) -> None:
    files = unbroken.folder / "log.csv", unbroken.folder / "checkpoint.pt"
    before = [file.stat().st_mtime_ns for file in files]
    assert_same_weights(run(toy, plain, unbroken.folder, settings, resume=True), unbroken.weights)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_one_line_a_step(settings: Settings, unbroken: Trained) -> None:
    with (unbroken.folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "rate", "seconds"]
    assert [int(row["step"]) for row in rows] == list(range(settings.steps))
    assert all(0 < float(row["loss"]) < 100 and 0 < float(row["rate"]) <= 1 for row in rows)


@pytest.mark.parametrize("negatives", ["cutswap", "random-swap", "cutpaste", "cutpaste-scar", "cutpaste-3way", "mix"])
def test_every_kind_of_negatives_trains(
    toy: str, plain: Backbone, settings: Settings, tmp_path: Path, negatives: str
) -> None:
    run(toy, plain, tmp_path, replace(settings, negatives=negatives, steps=1))
    assert len(log_of(tmp_path)) == 1


_CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = [{repo!r}, {tests!r}]
import torch
import test_training
from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import load_backbone
from train.localiser.fit import fit_localiser
from train.cell_folder import CellFolder

torch.set_num_threads(1)
done = 0

def advance(count):
    global done
    done += count
    while done > 52:
        time.sleep(1)

pretrained = for_inference(load_backbone(test_training.CACHE.backbone, test_training.CACHE.weights))
cell = CellFolder(Path({folder!r}))
fit_localiser(pretrained, test_training.stream({store!r}), test_training.LONG, test_training.SEED, cell, advance)
"""


@pytest.mark.slow
def test_a_killed_process_is_resumed_bit_for_bit(toy: str, plain: Backbone, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    script = _CHILD.format(repo=str(REPO), tests=str(REPO / "tests"), store=toy, folder=str(killed))
    with killed_once_there([sys.executable, "-c", script], killed / "checkpoint.pt"):
        unbroken = run(toy, plain, tmp_path / "unbroken", LONG)
    assert len(log_of(killed)) == 50
    assert_same_weights(run(toy, plain, killed, LONG, resume=True), unbroken)
    assert log_of(killed) == log_of(tmp_path / "unbroken")


# --- the localiser ------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_cells_of_unseen_negatives_are_told_apart(
    toy: str, plain: Backbone, pretrained: Backbone, tmp_path: Path
) -> None:
    cell = CellFolder(tmp_path)
    cell.path.mkdir(parents=True, exist_ok=True)
    settings = replace(QUICK, steps=30, batch_size=4)
    localiser = fit_localiser(pretrained, stream(toy), settings, SEED, cell, lambda _: None)
    losses = [float(row["loss"]) for row in log_of(tmp_path)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    labels: list[NDArray[np.int8]] = []
    logits: list[Tensor] = []
    batch = next(stream(toy).batches(20, 1))
    for i, normal in enumerate(batch.normals(CACHE)):
        example = make_example(normal, "cutswap", 32, 0.0, np.random.default_rng([77, i]))
        images = torch.from_numpy(example.image)[None]
        with torch.no_grad():
            shared = pretrained.activations(pretrained.normalise(images), (localiser.input_stage,))[0]
            logits.append(localiser(shared).flatten())
        labels.append(example.labels.ravel())
    truth = np.concatenate(labels)
    assert roc_auc_score(truth[truth != IGNORED] == CHANGED, torch.cat(logits).numpy()[truth != IGNORED]) > 0.85


def test_the_stages_and_what_is_new_are_trained_and_the_backbone_stays_as_it_is(
    toy: str, pretrained: Backbone, tmp_path: Path
) -> None:
    before = copy.deepcopy(pretrained.state_dict())
    torch.manual_seed(SEED)
    first = copy.deepcopy(Localiser(pretrained).state_dict())
    cell = CellFolder(tmp_path)
    cell.path.mkdir(parents=True, exist_ok=True)
    after = fit_localiser(pretrained, stream(toy), QUICK, SEED, cell, lambda _: None).state_dict()
    assert not changed(before, pretrained.state_dict())
    parts = {".".join(name.split(".")[:2]) for name in changed(first, after)}
    assert {"stages.0", "stages.1", "stages.2", "bring.0", "bring.1", "bring.2", "bring.3"} <= parts
    assert {part for part in parts if part.startswith("head")} == {f"head.{i}" for i in (0, 1, 2, 4, 5, 7)}


def test_stages_without_a_rate_stay_pretrained(toy: str, plain: Backbone, tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    first = Localiser(for_inference(plain)).state_dict()
    after = run(toy, plain, tmp_path, replace(QUICK, backbone_lr=0.0))
    different = changed(first, after)
    assert not [name for name in different if name.startswith("stages.")]
    assert {"bring.0.weight", "head.7.bias"} <= different


@pytest.mark.usefixtures("checkpoint_each_2")
def test_without_a_rate_of_the_stages_a_run_is_resumed_as_well(toy: str, plain: Backbone, tmp_path: Path) -> None:
    frozen = replace(QUICK, backbone_lr=0.0)
    unbroken = run(toy, plain, tmp_path / "unbroken", frozen)
    with pytest.raises(Killed):
        run(toy, plain, tmp_path / "cut", frozen, die_at=3)
    assert_same_weights(run(toy, plain, tmp_path / "cut", frozen, resume=True), unbroken)


def test_a_diverged_run_is_stopped_with_one_line(
    toy: str, plain: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.localiser.network._FIRST_LOGIT", math.nan)  # as after a step too far
    with pytest.raises(UserError, match="step 0 is not finite") as caught:
        run(toy, plain, tmp_path)
    assert "\n" not in str(caught.value) and "--head-lr" in str(caught.value)
    assert not (tmp_path / "checkpoint.pt").exists()


@dataclass(frozen=True, eq=False)
class Seen:
    """An example, and what it was made of."""

    normal: NDArray[np.float32]
    kind: str | None
    example: Example


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, cores: Callable[[int], None]) -> list[Seen]:
    """The examples in the order in which they are made, in one thread; some are made ahead of their step."""
    cores(1)
    found: list[Seen] = []

    def spied(normal: Normal, kind: str | None, *rest: Any) -> Example:
        example = make_example(normal, kind, *rest)
        found.append(Seen(normal.image.copy(), kind, example))
        return example

    monkeypatch.setattr(train.localiser.fit, "make_example", spied)
    return found


def test_batches_are_negatives_and_then_half_as_many_normals_of_other_images(
    toy: str, plain: Backbone, tmp_path: Path, seen: list[Seen]
) -> None:
    settings = replace(QUICK, batch_size=3, steps=3)
    run(toy, plain, tmp_path, settings)
    kinds = [one.kind for one in seen[: 3 * 5]]
    assert kinds == [*["cutswap"] * 3, None, None] * 3
    batches = islice(stream(toy).batches(5, SEED), 3)
    expected = np.concatenate([batch.images for batch in batches])
    np.testing.assert_array_equal(np.stack([one.normal for one in seen[: 3 * 5]]), expected)


@pytest.mark.parametrize("kind", ["random-swap", "cutpaste", "cutpaste-scar", "mix"])
def test_arms_see_the_same_normals_in_the_same_order_and_light(
    toy: str, plain: Backbone, tmp_path: Path, seen: list[Seen], kind: str
) -> None:
    arms = []
    for negatives in ("cutswap", kind):
        seen.clear()
        run(toy, plain, tmp_path / negatives, replace(QUICK, negatives=negatives, steps=3, backbone_lr=0))
        arms.append(seen[: 3 * 3])
    mine, yours = arms
    assert len(mine) == 9 and {one.kind for one in mine} == {"cutswap", None}
    for one, other in zip(mine, yours, strict=True):
        np.testing.assert_array_equal(one.normal, other.normal)
        assert (one.kind is None) == (other.kind is None)
        same = np.array_equal(one.example.image, other.example.image)
        assert same == (one.kind is None)
    assert not np.array_equal(mine[0].normal, mine[1].normal)


def test_no_example_is_like_that_of_another_step(toy: str, plain: Backbone, tmp_path: Path, seen: list[Seen]) -> None:
    # 24 images of 3 a step: the second epoch begins at step 8, with other negatives of the same normals.
    run(toy, plain, tmp_path, replace(QUICK, steps=12, backbone_lr=0))
    made = seen[: 12 * 3]
    assert len({one.normal.tobytes() for one in made}) == NORMALS
    assert len({one.example.image.tobytes() for one in made}) == len(made)


# --- its loss -----------------------------------------------------------------------------------------------------


def part_of(labels: NDArray[np.int8], changed: int) -> train.localiser.fit._Part:
    return train.localiser.fit._Part(torch.zeros(1), torch.from_numpy(labels), changed)


def test_the_loss_is_a_focal_one_per_changed_cell_of_the_batch() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([CHANGED, UNCHANGED, IGNORED], (3, 4, 4)).astype(np.int8)
    logits = torch.from_numpy(rng.standard_normal((3, 4, 4)) * 2)
    expected = 0.0
    for label, logit in zip(labels.ravel(), logits.flatten().tolist(), strict=True):
        chance = 1 / (1 + math.exp(-logit))
        if label == CHANGED:
            expected -= (1 - chance) * math.log(chance)
        elif label == UNCHANGED:
            expected -= 0.5 * chance * math.log(1 - chance)
    assert train.localiser.fit._loss(logits, part_of(labels, 11)).item() == pytest.approx(expected / 11)


def test_ignored_cells_and_the_weight_have_no_gradient() -> None:
    labels = np.array([[[CHANGED, UNCHANGED, IGNORED]]], np.int8)
    logits = torch.tensor([[[0.7, -0.3, 5.0]]], requires_grad=True)
    train.localiser.fit._loss(logits, part_of(labels, 1)).backward()
    assert logits.grad is not None
    # The gradient of cross-entropy is probability less truth; the weight multiplies it, and is half of it for normals.
    chance = logits.detach().sigmoid()[0, 0].tolist()
    expected = [-((1 - chance[0]) ** 2), 0.5 * chance[1] ** 2, 0]
    np.testing.assert_allclose(logits.grad[0, 0].numpy(), expected, rtol=1e-5)


def test_the_losses_of_parts_add_up_and_a_batch_without_changed_cells_is_no_error() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice([CHANGED, UNCHANGED], (4, 2, 2)).astype(np.int8)
    logits = torch.from_numpy(rng.standard_normal((4, 2, 2)))
    loss = train.localiser.fit._loss
    parts = [loss(logits[i : i + 2], part_of(labels[i : i + 2], 5)) for i in (0, 2)]
    torch.testing.assert_close(parts[0] + parts[1], loss(logits, part_of(labels, 5)))
    assert loss(logits, part_of(labels * 0, 1)).isfinite()


def test_blank_images_are_refused_as_no_swap_of_theirs_shows(plain: Backbone, tmp_path: Path) -> None:
    images = np.full((6, 32, 32, 3), 90, np.uint8)
    store = write_cache(tmp_path / "cache.zarr", {"toy": images}, CACHE)
    category = NormalStream(open_cache(store)["toy"], np.arange(6))
    cell = CellFolder(tmp_path / "cell")
    cell.path.mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match="no negative shows a change") as caught:
        fit_localiser(for_inference(plain), category, replace(QUICK, steps=1), SEED, cell, lambda _: None)
    assert "\n" not in str(caught.value)


# --- the arm `finetuned` ------------------------------------------------------------------------------------------


def test_the_backbone_is_trained_and_its_batch_statistics_and_classifier_stay(
    toy: str, plain: Backbone, tmp_path: Path
) -> None:
    before = plain.state_dict()
    different = changed(before, run(toy, plain, tmp_path, TUNING))
    kept = {n for n in before if n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    kept |= {name for name in before if name.startswith("head.")}
    assert len(kept) > 10 and not different & kept
    assert "stem.0.weight" in different and {f"stages.{i}" for i in range(7)} <= {name[:8] for name in different}


def test_its_head_is_trained_as_well(toy: str, plain: Backbone, tmp_path: Path) -> None:
    run(toy, plain, tmp_path, replace(TUNING, steps=2))
    weights = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["weights"]
    torch.manual_seed(SEED)
    first = Classifier(copy.deepcopy(plain), recipe_of(CACHE.backbone, TUNING)).state_dict()
    different = changed({name: first[name] for name in weights}, weights)
    assert {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"} <= different


@pytest.mark.slow
def test_its_loss_falls(toy: str, plain: Backbone, tmp_path: Path) -> None:
    run(toy, plain, tmp_path, replace(TUNING, steps=20, batch_size=4))
    losses = [float(row["loss"]) for row in log_of(tmp_path)]
    assert losses[0] == pytest.approx(math.log(2), abs=0.4)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_a_normal_and_its_negative_have_the_same_light(
    toy: str, plain: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.finetune.make_negative", lambda kind, normal, rng: normal.image)
    pairs: list[Tensor] = []

    forward = Classifier.forward

    def classify(self: Classifier, images: Tensor) -> Tensor:
        pairs.append(images.clone())
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", classify)
    run(toy, plain, tmp_path, replace(TUNING, steps=2, colour_jitter=0.3))
    assert all(torch.equal(images[0], images[1]) for images in pairs) and len(pairs) >= 4
    assert len({float(images[0].mean()) for images in pairs}) > 2
