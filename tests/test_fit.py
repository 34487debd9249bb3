import copy
import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import REPO, write_cache
from torch import Tensor
from torch.nn.functional import nll_loss

import train.fit
from pipeline.backbones.load import load_backbone
from pipeline.cache.cache import open_cache
from pipeline.errors import UserError
from pipeline.settings import PrecomputeSettings
from train.features.network import CutSwapNetwork
from train.fit import fit
from train.negatives.make import make_negatives
from train.negatives.stream import NormalImages, NormalStream
from train.recipe import recipe_of
from train.run_folder import CellFolder
from train.scorers.contrast import Contrast
from train.scorers.normals import embed_normals
from train.settings import TrainSettings

CACHE = PrecomputeSettings(image_size=32, stages=("blocks.1", "blocks.4"), pairs=4, patch_area=(0.1, 0.2))
NORMALS = 24
QUICK = TrainSettings(steps=5, batch_size=2, head_lr=0.01, backbone_lr=0.0001)
RECIPE = recipe_of(CACHE.backbone, QUICK)
SEED = 4
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """The weights that a run ended with, and its folder."""

    weights: Weights
    folder: Path


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache of images that are dark above and bright below, so that most swaps show at a glance."""
    images = np.random.default_rng(0).integers(0, 40, (NORMALS, 32, 32, 3), np.uint8)
    images[:, 16:] += 200
    return write_cache(tmp_path_factory.mktemp("toy") / "cache.zarr", {"toy": images}, CACHE)


@pytest.fixture(scope="module")
def untrained(toy: str) -> Callable[[int], CutSwapNetwork]:
    """Makes networks with so many classes, all of the same first weights."""
    pretrained = load_backbone(CACHE.backbone, CACHE.weights)
    images = NormalImages(stream(toy), np.arange(NORMALS))
    gaussian = embed_normals(pretrained, RECIPE, images, np.arange(NORMALS), 0).gaussian

    def make(classes: int = 2) -> CutSwapNetwork:
        torch.manual_seed(0)
        network = CutSwapNetwork(copy.deepcopy(pretrained), RECIPE, classes, frozen=False)
        network.whitening.fit(gaussian.mean, gaussian.factor)
        return network

    return make


@pytest.fixture(scope="module")
def unbroken(toy: str, untrained: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A whole run of QUICK."""
    folder = tmp_path_factory.mktemp("unbroken")
    return Trained(run(toy, untrained(), folder), folder)


def stream(store: str) -> NormalStream:
    return NormalStream(open_cache(store)["toy"], np.arange(NORMALS))


def run(
    store: str,
    network: CutSwapNetwork,
    folder: Path,
    settings: TrainSettings = QUICK,
    *,
    seed: int = SEED,
    resume: bool = False,
    die_at: int | None = None,
) -> Weights:
    """The weights after `fit`; die_at: the step that is cut off."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done == die_at:
            raise Killed

    cell = CellFolder(folder)
    cell.clear(keep_checkpoint=resume)
    fit(network, stream(store), settings, seed, cell, advance)
    assert done == settings.steps
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(mine: Weights, yours: Weights) -> None:
    assert mine.keys() == yours.keys()
    assert [name for name in mine if not torch.equal(mine[name], yours[name])] == []


def changed(before: Weights, after: Weights) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", ["binary", "levels"])
def test_the_loss_falls(toy: str, untrained: Any, tmp_path: Path, proxy: str) -> None:
    settings = TrainSettings(
        proxy=proxy, steps=25, batch_size=8, head_lr=0.1, backbone_lr=0, colour_jitter=0, translation=0
    )
    run(toy, untrained(3 if proxy == "levels" else 2), tmp_path / "run", settings)
    losses = [float(row["loss"]) for row in log_of(tmp_path / "run")]
    accuracies = [float(row["accuracy"]) for row in log_of(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert np.mean(accuracies[-5:]) > 0.8


@pytest.mark.parametrize("negatives", ["random-swap", "cutpaste", "cutpaste-scar"])
def test_every_kind_of_negatives_trains(toy: str, untrained: Any, tmp_path: Path, negatives: str) -> None:
    network = untrained()
    before = copy.deepcopy(network.state_dict())
    after = run(toy, network, tmp_path / "run", replace(QUICK, negatives=negatives, steps=1))
    assert "head.weight" in changed(before, after)
    assert not network.training


def test_levels_have_a_class_a_stage(toy: str, untrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {"binary": [], "levels": []}
    stages: list[Tensor] = []

    def spied(*arguments: Any) -> tuple[Tensor, Tensor]:
        negatives, stage = make_negatives(*arguments)
        stages.append(stage)
        return negatives, stage

    monkeypatch.setattr("train.fit.make_negatives", spied)
    for proxy, labels in seen.items():

        def read(logits: Tensor, classes: Tensor, labels: list[Tensor] = labels) -> Tensor:
            labels.append(classes)
            return nll_loss(logits.log_softmax(1), classes)

        with monkeypatch.context() as patch:
            patch.setattr("torch.nn.functional.cross_entropy", read)
            run(
                toy,
                untrained(3 if proxy == "levels" else 2),
                tmp_path / proxy,
                replace(QUICK, proxy=proxy, backbone_lr=0),
            )
    normal = torch.zeros(QUICK.batch_size, dtype=torch.int64)
    for binary, levels, stage in zip(seen["binary"], seen["levels"], stages[QUICK.steps :], strict=True):
        assert torch.equal(binary, torch.cat([normal, normal + 1]))
        assert torch.equal(levels, torch.cat([normal, 1 + stage]))
    assert set(torch.cat(seen["levels"]).tolist()) == {0, 1, 2}


def test_three_ways_have_three_classes(
    toy: str, untrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, negatives="cutpaste-3way", batch_size=4, backbone_lr=0, steps=2)
    assert settings.classes(stages=2) == replace(settings, proxy="levels").classes(stages=4) == 3
    seen: list[Tensor] = []

    def read(logits: Tensor, classes: Tensor) -> Tensor:
        seen.append(classes)
        return nll_loss(logits.log_softmax(1), classes)

    monkeypatch.setattr("torch.nn.functional.cross_entropy", read)
    run(toy, untrained(3), tmp_path / "run", settings)
    for classes in seen:
        assert classes[:4].tolist() == [0] * 4 and sorted(classes[4:].tolist()) == [1, 1, 2, 2]


def test_batch_statistics_and_whitening_stay_those_of_pretraining(untrained: Any, unbroken: Trained) -> None:
    before = untrained().state_dict()
    different = changed(before, unbroken.weights)
    kept = {n for n in before if n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    kept |= {n for n in before if n.startswith(("whitening.", "backbone.head."))}
    assert len(kept) > 10 and not different & kept
    assert {"head.weight", "head.bias", "backbone.stem.0.weight"} <= different


def test_a_backbone_without_a_rate_stays_as_it_is(toy: str, untrained: Any, tmp_path: Path) -> None:
    network = untrained()
    before = copy.deepcopy(network.state_dict())
    after = run(toy, network, tmp_path / "run", replace(QUICK, backbone_lr=0.0))
    assert changed(before, after) == {"head.weight", "head.bias"}


def test_one_line_a_step_with_one_cosine_cycle(unbroken: Trained) -> None:
    log = log_of(unbroken.folder)
    assert list(log[0]) == ["step", "loss", "accuracy", "rate"]
    assert [int(row["step"]) for row in log] == list(range(QUICK.steps))
    assert all(0 < float(row["loss"]) < 100 and 0 <= float(row["accuracy"]) <= 1 for row in log)
    expected = [(1 + np.cos(np.pi * step / QUICK.steps)) / 2 for step in range(QUICK.steps)]
    np.testing.assert_allclose([float(row["rate"]) for row in log], expected, atol=1e-6)


class Seen:
    """Keeps the normals that `fit` shows it, as they were augmented."""

    def __init__(self) -> None:
        self.moments: dict[str, Tensor] = {}
        self.normals: list[Tensor] = []

    def update(self, images: Tensor, changed: Tensor, rows: Tensor) -> None:
        self.normals.append(images[: len(rows)].clone())


@pytest.mark.parametrize("kind", ["random-swap", "cutpaste", "cutpaste-scar", "cutpaste-3way"])
def test_arms_see_the_same_normals_in_the_same_order_and_augmentation(
    toy: str, untrained: Any, tmp_path: Path, kind: str
) -> None:
    arms = Seen(), Seen()
    for seen, negatives in zip(arms, ("cutswap", kind), strict=True):
        settings = replace(QUICK, negatives=negatives, steps=3, backbone_lr=0)
        network = untrained(settings.classes(len(CACHE.stages)))
        cell = CellFolder(tmp_path / negatives)
        cell.clear(keep_checkpoint=False)
        fit(network, stream(toy), settings, SEED, cell, lambda _: None, cast(Contrast, seen))
    mine, yours = (torch.cat(seen.normals) for seen in arms)
    assert torch.equal(mine, yours) and not torch.equal(mine[0], mine[1])


# --- the same run again, and a run cut off ------------------------------------------------------------------------


@pytest.fixture
def checkpoint_each_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.fit, "_STEPS_BETWEEN_CHECKPOINTS", 2)


def test_a_seed_decides_every_bit(toy: str, untrained: Any, unbroken: Trained, tmp_path: Path) -> None:
    assert_same(run(toy, untrained(), tmp_path / "same", seed=SEED), unbroken.weights)
    assert "head.weight" in changed(run(toy, untrained(), tmp_path / "other", seed=SEED + 1), unbroken.weights)


@pytest.mark.usefixtures("checkpoint_each_2")
@pytest.mark.parametrize("die_at", [1, 3, 5])
def test_a_run_cut_off_and_resumed_ends_with_the_weights_of_an_unbroken_one(
    toy: str, untrained: Any, unbroken: Trained, tmp_path: Path, die_at: int
) -> None:
    with pytest.raises(Killed):
        run(toy, untrained(), tmp_path, die_at=die_at)
    assert (tmp_path / "checkpoint.pt").exists() == (die_at > 2)
    assert_same(run(toy, untrained(), tmp_path, resume=True), unbroken.weights)
    assert log_of(tmp_path) == log_of(unbroken.folder)


@pytest.mark.usefixtures("checkpoint_each_2")
def test_a_log_ahead_of_its_checkpoint_is_cut_to_it(
    toy: str, untrained: Any, unbroken: Trained, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(toy, untrained(), tmp_path, die_at=3)
    # As where the process dies after it wrote the log and before the checkpoint of step 4.
    with (tmp_path / "log.csv").open("a") as file:
        file.writelines(f"{step},9,0,1\r\n" for step in (2, 3))
    (tmp_path / "checkpoint.part").write_bytes(b"half a check")
    run(toy, untrained(), tmp_path, resume=True)
    assert log_of(tmp_path) == log_of(unbroken.folder)


def test_a_finished_run_is_read_back(toy: str, untrained: Any, unbroken: Trained) -> None:
    files = unbroken.folder / "log.csv", unbroken.folder / "checkpoint.pt"
    before = [file.stat().st_mtime_ns for file in files]
    assert_same(run(toy, untrained(), unbroken.folder, resume=True), unbroken.weights)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_a_run_is_not_resumed_from_the_checkpoint_of_one_before_it(
    toy: str, untrained: Any, unbroken: Trained, tmp_path: Path
) -> None:
    run(toy, untrained(), tmp_path, replace(QUICK, steps=2))
    with pytest.raises(Killed):
        run(toy, untrained(), tmp_path, die_at=1)
    assert_same(run(toy, untrained(), tmp_path, resume=True), unbroken.weights)


_CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = [{repo!r}, {tests!r}]
import torch
import test_fit
from pipeline.backbones.load import load_backbone
from train.fit import fit
from train.features.network import CutSwapNetwork
from train.run_folder import CellFolder

torch.set_num_threads(1)
done = 0

def advance(count):
    global done
    done += count
    while done > 52:
        time.sleep(1)

torch.manual_seed(0)
pretrained = load_backbone(test_fit.CACHE.backbone, test_fit.CACHE.weights)
network = CutSwapNetwork(pretrained, test_fit.RECIPE, 2, frozen=False)
cell = CellFolder(Path({folder!r}))
fit(network, test_fit.stream({store!r}), test_fit.LONG, test_fit.SEED, cell, advance)
"""
LONG = replace(QUICK, steps=55, batch_size=1)


@pytest.mark.slow
def test_a_killed_process_is_resumed_bit_for_bit(toy: str, tmp_path: Path) -> None:
    def network() -> CutSwapNetwork:
        torch.manual_seed(0)
        return CutSwapNetwork(load_backbone(CACHE.backbone, CACHE.weights), RECIPE, 2, frozen=False)

    killed = tmp_path / "killed"
    killed.mkdir()
    script = _CHILD.format(repo=str(REPO), tests=str(REPO / "tests"), store=toy, folder=str(killed))
    child = subprocess.Popen([sys.executable, "-c", script])
    try:
        unbroken = run(toy, network(), tmp_path / "unbroken", LONG)
        until = time.monotonic() + 100
        while not (killed / "checkpoint.pt").exists() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert len(log_of(killed)) == 50
    assert_same(run(toy, network(), killed, LONG, resume=True), unbroken)
    assert log_of(killed) == log_of(tmp_path / "unbroken")


def test_a_diverged_run_is_stopped_with_one_line(toy: str, untrained: Any, tmp_path: Path) -> None:
    network = untrained()
    with torch.no_grad():
        network.head.weight.fill_(torch.inf)  # as after a step too far
    with pytest.raises(UserError, match="step 0 is not finite") as caught:
        run(toy, network, tmp_path)
    assert "\n" not in str(caught.value) and "--head-lr" in str(caught.value)
    assert not (tmp_path / "checkpoint.pt").exists()
