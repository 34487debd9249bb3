"""A detector's file that is damaged: one line that names it, and never another score."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallCache, invoke
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.workers.execution import Execution
from train.detector import Detector
from train.run import open_run
from train.settings import TrainSettings
from train.training import train

SETTINGS = TrainSettings(steps=1, batch_size=2, crop=32, coreset=30)


@pytest.fixture(scope="module")
def sound(small_cache: SmallCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with a localiser."""
    folder = tmp_path_factory.mktemp("run")
    train(open_run(small_cache.store, folder, SETTINGS, categories=["poly"], execution=Execution(device="cpu")))
    return folder / "poly/seed-0/detector.pt"


def line_of(path: Path, image_root: Path) -> str:
    """What `predict` says of it, in one line, with status 2."""
    out = path.parent / "out"
    said = invoke("predict", path, image_root / "poly/test/good", "--out", out, "--device", "cpu")
    (line,) = said.stderr.splitlines()
    assert said.exit_code == 2 and line.startswith(f"Error: {path} ") and not out.exists()
    return line


@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, -1, -20, "text"])
def test_half_a_file_is_told_in_one_line(cut: Any, sound: Path, image_root: Path, tmp_path: Path) -> None:
    data = sound.read_bytes()
    data = b"no detector" if cut == "text" else data[: int(len(data) * cut) if isinstance(cut, float) else cut]
    (tmp_path / "detector.pt").write_bytes(data)
    line = line_of(tmp_path / "detector.pt", image_root)
    assert "damaged or no detector" in line and line.endswith("copy it again, or train again")


def nan_threshold(state: dict[str, Any]) -> None:
    state["threshold"] = float("nan")


def nan_weight(state: dict[str, Any]) -> None:
    next(iter(state["pretrained"].values())).view(-1)[3] = np.nan


def infinite_localiser(state: dict[str, Any]) -> None:
    next(iter(state["localiser"].values())).view(-1)[0] = -np.inf


def infinite_reference(state: dict[str, Any]) -> None:
    state["references"]["coreset"][1, 2] = np.inf


def nan_scale(state: dict[str, Any]) -> None:
    state["standardisers"]["gaussian"]["deviation"] = torch.tensor(np.array(np.nan))


def infinite_range(state: dict[str, Any]) -> None:
    state["map_range"][1] = float("inf")


def nan_rest(state: dict[str, Any]) -> None:
    state["scorers"]["gaussian"]["rest"] = torch.tensor(np.array(np.nan))


NOT_FINITE = {
    nan_threshold: "threshold",
    nan_weight: "pretrained.",
    infinite_localiser: "localiser.",
    infinite_reference: "references.coreset",
    nan_scale: "standardisers.gaussian.deviation",
    infinite_range: "map_range.1",
    nan_rest: "scorers.gaussian.rest",
}


@pytest.mark.parametrize("spoil", NOT_FINITE, ids=lambda spoil: spoil.__name__)
def test_a_value_that_is_not_finite_is_named(
    spoil: Callable[[dict[str, Any]], None], sound: Path, image_root: Path, tmp_path: Path
) -> None:
    state = torch.load(sound, weights_only=True)
    spoil(state)
    torch.save(state, tmp_path / "detector.pt")
    line = line_of(tmp_path / "detector.pt", image_root)
    assert f"holds values that are not finite ({NOT_FINITE[spoil]}" in line and line.endswith("train again")


@pytest.mark.parametrize("part", ["cache", "pretrained", "localiser", "references", "threshold", "recipe", "settings"])
def test_a_part_that_is_gone_or_of_another_kind_is_told_in_one_line(
    part: str, sound: Path, image_root: Path, tmp_path: Path
) -> None:
    state = torch.load(sound, weights_only=True)
    torch.save({name: value for name, value in state.items() if name != part}, tmp_path / "detector.pt")
    assert "no whole detector" in line_of(tmp_path / "detector.pt", image_root)
    if part in ("pretrained", "localiser", "references", "cache"):
        torch.save({**state, part: {"weight": torch.zeros(3)}}, tmp_path / "detector.pt")
        line_of(tmp_path / "detector.pt", image_root)


@pytest.mark.slow
def test_a_flipped_bit_is_told_or_changes_nothing(sound: Path, photos: NDArray[np.uint8], tmp_path: Path) -> None:
    data, random = bytearray(sound.read_bytes()), np.random.default_rng(0)
    path = tmp_path / "detector.pt"
    expected = Detector.load(sound, "cpu").score(photos)
    # Anywhere, and where the archive's own headers and directory are.
    headers = [at for at in range(len(data) - 4) if data[at : at + 2] == b"PK" and data[at + 2] < 8 > data[at + 3]]
    near = [int(random.choice(headers)) + int(random.integers(60)) for _ in range(100)]
    ends = [len(data) - 1 - int(random.integers(200)) for _ in range(20)]
    outcomes = {"told": 0, "same": 0}
    for at in (*random.integers(len(data), size=200).tolist(), *near, *ends):
        at, bit = min(at, len(data) - 1), 1 << int(random.integers(8))
        data[at] ^= bit
        path.write_bytes(data)
        data[at] ^= bit
        try:
            found = Detector.load(path, "cpu").score(photos)
        except UserError as error:
            outcomes["told"] += 1
            assert str(path) in str(error) and "\n" not in str(error), at
        else:
            outcomes["same"] += 1
            for name, values in expected.image.items():
                np.testing.assert_array_equal(found.image[name], values, err_msg=str((at, bit)))
    assert outcomes["told"] > 200 and outcomes["same"] > 0, outcomes


def test_a_damaged_checkpoint_is_told_in_one_line(sound: Path, small_cache: SmallCache, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sound.parents[2], tmp_path / "run"))
    cell = (run / "poly/seed-0").rename(run / "poly/partial-seed-0")
    (cell / "cell.json").unlink()
    data = bytearray((cell / "checkpoint.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (cell / "checkpoint.pt").write_bytes(data)
    cpu = Execution(device="cpu")
    with pytest.raises(UserError, match=r"checkpoint\.pt cannot be read: delete it"):
        train(open_run(small_cache.store, run, SETTINGS, categories=["poly"], execution=cpu))
