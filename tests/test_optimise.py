import copy
import csv
import math
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Advance, Killed, Weights, assert_same_weights, log_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.threads import CORES
from train.cell_folder import CellFolder
from train.optimise import Plan, optimise

WIDTH, PARTS, SEED = 6, 3, 5
PLAN = Plan(steps=7, warm_up=2, gradient_norm=1.0)
PEAK = 0.05


@dataclass(frozen=True)
class Trained:
    """The weights that a run ended with, and its folder."""

    weights: Weights
    folder: Path


@pytest.fixture(autouse=True)
def checkpoint_each_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.optimise._STEPS_BETWEEN_CHECKPOINTS", 2)


@pytest.fixture
def unbroken(tmp_path: Path) -> Trained:
    """A whole run of PLAN."""
    folder = tmp_path / "unbroken"
    return Trained(run(folder), folder)


def network() -> nn.Sequential:
    """A frozen layer and two that are trained; always with the same first weights."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    layers[0].requires_grad_(False)
    return layers


def batches(start: int) -> Iterator[list[Tensor]]:
    """Parts (4,WIDTH) that are drawn from (seed, step), without end."""
    step = start
    while True:
        rng = np.random.default_rng([SEED, step])
        yield [torch.from_numpy(rng.standard_normal((4, WIDTH))).float() for _ in range(PARTS)]
        step += 1


def loss_on(layers: nn.Module, part: Tensor) -> Tensor:
    loss: Tensor = (layers(part)[:, 0] - part.sum(1)).square().sum() / 12
    return loss


def run(
    folder: Path,
    *,
    plan: Plan = PLAN,
    resume: bool = False,
    die_at: int | None = None,
    layers: nn.Module | None = None,
    peak: float = PEAK,
) -> Weights:
    """The weights after `optimise`; die_at: the step that is cut off."""
    advance = Advance(die_at)
    layers = network() if layers is None else layers
    optimiser = torch.optim.AdamW([{"params": [p for p in layers.parameters() if p.requires_grad], "peak": peak}], lr=0)
    cell = CellFolder(folder)
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    optimise(layers, optimiser, batches, lambda part: loss_on(layers, part), plan, cell, advance)
    assert advance.done == plan.steps
    return {name: value.clone() for name, value in layers.state_dict().items()}


# --- the plan -----------------------------------------------------------------------------------------------------


def test_the_rate_rises_to_its_peak_and_falls_along_a_half_cosine() -> None:
    plan = Plan(steps=100, warm_up=10)
    rates = [plan.rate(step) for step in range(100)]
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(100) / 100))
    np.testing.assert_allclose(rates, cosine * np.minimum(1, np.arange(1, 101) / 10))
    assert np.argmax(rates) == 9 and rates[0] == pytest.approx(0.1) and rates[-1] < 0.001


@given(st.integers(1, 500), st.integers(0, 600))
def test_every_step_has_a_rate_above_0_and_at_most_1(steps: int, warm_up: int) -> None:
    plan = Plan(steps, warm_up)
    assert all(0 < plan.rate(step) <= 1 for step in range(steps))


def test_without_a_warm_up_the_first_rate_is_the_peak() -> None:
    assert Plan(5).rate(0) == 1


# --- steps --------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_batch_make_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    found = run(tmp_path)
    layers = network()
    weights = [parameter for parameter in layers.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights)
    for step, parts in zip(range(PLAN.steps), batches(0), strict=False):
        optimiser.param_groups[0]["lr"] = PEAK * PLAN.rate(step)
        optimiser.zero_grad()
        loss_on(layers, torch.cat(parts)).backward()
        nn.utils.clip_grad_norm_(weights, PLAN.gradient_norm)
        optimiser.step()
    for name, value in layers.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_only_what_wants_a_gradient_is_trained(unbroken: Trained) -> None:
    before = network().state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, unbroken.weights[name])}
    assert changed == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_the_loss_falls(tmp_path: Path) -> None:
    run(tmp_path, plan=Plan(150))
    losses = [float(row["loss"]) for row in log_of(tmp_path)]
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:20])


def test_no_gradient_is_longer_than_the_plan_allows(tmp_path: Path) -> None:
    def moved(gradient_norm: float) -> float:
        layers = network()
        before = copy.deepcopy(layers.state_dict())
        weights = [parameter for parameter in layers.parameters() if parameter.requires_grad]
        optimiser = torch.optim.SGD([{"params": weights, "peak": 1.0}], lr=0)
        cell = CellFolder(tmp_path / str(gradient_norm))
        cell.path.mkdir(parents=True, exist_ok=True)
        plan = Plan(1, gradient_norm=gradient_norm)
        optimise(layers, optimiser, batches, lambda part: loss_on(layers, part), plan, cell, lambda _: None)
        return math.sqrt(sum(float((v - before[n]).square().sum()) for n, v in layers.state_dict().items()))

    assert moved(0.25) == pytest.approx(0.25, rel=1e-3)
    assert moved(math.inf) > 0.5


def test_a_log_has_a_line_a_step(unbroken: Trained) -> None:
    with (unbroken.folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "rate", "seconds"]
    assert [int(row["step"]) for row in rows] == list(range(PLAN.steps))
    np.testing.assert_allclose(
        [float(row["rate"]) for row in rows], [PLAN.rate(step) for step in range(PLAN.steps)], atol=1e-6
    )
    assert float(rows[0]["loss"]) == pytest.approx(
        sum(loss_on(network(), part).item() for part in next(batches(0))), abs=1e-5
    )
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds) and 0 <= seconds[-1] < 60


def test_each_part_is_computed_in_a_thread_of_the_cores(tmp_path: Path) -> None:
    names = set()
    layers = network()

    def loss_of(part: Tensor) -> Tensor:
        names.add(threading.current_thread().name.split("_")[0])
        assert torch.get_num_threads() == 1 and torch.is_grad_enabled()
        return loss_on(layers, part)

    optimiser = torch.optim.SGD([{"params": [*layers[1:].parameters()], "peak": 0.1}], lr=0)
    cell = CellFolder(tmp_path)
    optimise(layers, optimiser, batches, loss_of, Plan(2), cell, lambda _: None)
    assert names == {"compute"}


def test_the_number_of_threads_changes_no_bit(tmp_path: Path, unbroken: Trained) -> None:
    before = CORES.count
    try:
        for count in (1, 2, 5):
            CORES.use(count)
            assert_same_weights(run(tmp_path / str(count)), unbroken.weights)
    finally:
        CORES.use(before)


def test_an_error_of_a_part_is_raised(tmp_path: Path) -> None:
    def loss_of(part: Tensor) -> Tensor:
        raise ValueError("of the part")

    layers = network()
    optimiser = torch.optim.SGD([{"params": [*layers[1:].parameters()], "peak": 0.1}], lr=0)
    with pytest.raises(ValueError, match="of the part"):
        optimise(layers, optimiser, batches, loss_of, PLAN, CellFolder(tmp_path), lambda _: None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_run_is_stopped_with_one_line_before_its_weights_are_touched(tmp_path: Path, value: float) -> None:
    layers = network()
    before = copy.deepcopy(layers.state_dict())
    with torch.no_grad():
        layers[3].bias.fill_(value)  # type: ignore[operator]
    with pytest.raises(UserError, match="step 0 is not finite") as caught:
        run(tmp_path, layers=layers)
    assert "\n" not in str(caught.value) and "--head-lr" in str(caught.value) and "--backbone-lr" in str(caught.value)
    assert not (tmp_path / "checkpoint.pt").exists()
    assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items() if name != "3.bias")


# --- the same run again, and a run cut off ------------------------------------------------------------------------


def test_the_same_run_again_ends_with_the_same_bits(tmp_path: Path, unbroken: Trained) -> None:
    assert_same_weights(run(tmp_path / "again"), unbroken.weights)
    assert log_of(tmp_path / "again") == log_of(unbroken.folder)


@pytest.mark.parametrize("die_at", range(1, PLAN.steps + 1))
def test_a_run_cut_off_and_resumed_ends_with_the_weights_of_an_unbroken_one(
    tmp_path: Path, unbroken: Trained, die_at: int
) -> None:
    folder = tmp_path / "cut"
    with pytest.raises(Killed):
        run(folder, die_at=die_at)
    assert (folder / "checkpoint.pt").exists() == (die_at > 2)
    assert_same_weights(run(folder, resume=True), unbroken.weights)
    assert log_of(folder) == log_of(unbroken.folder)


def test_a_run_may_be_cut_off_again_and_again(tmp_path: Path, unbroken: Trained) -> None:
    folder = tmp_path / "cut"
    for die_at in (3, 5, 6):
        with pytest.raises(Killed):
            run(folder, resume=True, die_at=die_at)
    assert_same_weights(run(folder, resume=True), unbroken.weights)
    assert log_of(folder) == log_of(unbroken.folder)


def test_a_log_ahead_of_its_checkpoint_is_cut_to_it(tmp_path: Path, unbroken: Trained) -> None:
    folder = tmp_path / "cut"
    with pytest.raises(Killed):
        run(folder, die_at=3)
    # As where the process dies after it wrote the log and before the checkpoint of step 4.
    with (folder / "log.csv").open("a") as file:
        file.writelines(f"{step},9,0,1\r\n" for step in (2, 3))
    (folder / "checkpoint.part").write_bytes(b"half a check")
    run(folder, resume=True)
    assert log_of(folder) == log_of(unbroken.folder)


def test_a_finished_run_is_read_back(unbroken: Trained) -> None:
    files = unbroken.folder / "log.csv", unbroken.folder / "checkpoint.pt"
    before = [file.stat().st_mtime_ns for file in files]
    assert_same_weights(run(unbroken.folder, resume=True), unbroken.weights)
    assert [file.stat().st_mtime_ns for file in files] == before


def test_a_run_is_not_resumed_from_the_checkpoint_of_one_before_it(tmp_path: Path, unbroken: Trained) -> None:
    folder = tmp_path / "cut"
    run(folder, plan=replace(PLAN, steps=2))
    with pytest.raises(Killed):
        run(folder, die_at=1)
    assert_same_weights(run(folder, resume=True), unbroken.weights)


@pytest.mark.parametrize("content", ["empty", "cut", "noise", "another network", "nothing"])
def test_a_checkpoint_that_cannot_be_read_is_named_in_one_line(content: str, tmp_path: Path) -> None:
    run(tmp_path)
    file = tmp_path / "checkpoint.pt"
    if content == "another network":
        torch.save({**torch.load(file, weights_only=True), "weights": {"0.weight": torch.zeros(2)}}, file)
    elif content == "nothing":
        torch.save({}, file)
    else:
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "noise": b"\x93NUMPY"}[content])
    with pytest.raises(UserError, match="cannot be read: delete it") as caught:
        run(tmp_path, resume=True)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_log_that_cannot_be_read_stops_nothing(tmp_path: Path, unbroken: Trained) -> None:
    with pytest.raises(Killed):
        run(tmp_path, die_at=5)
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00\x80")
    assert_same_weights(run(tmp_path, resume=True), unbroken.weights)
    assert [int(row["step"]) for row in log_of(tmp_path)] == [4, 5, 6]


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_not(tmp_path: Path) -> None:
    layers = network()
    before = {name: value.clone() for name, value in layers.state_dict().items()}

    class Endless(torch.autograd.Function):
        """The identity, with a gradient that is not finite."""

        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * torch.inf

    with pytest.raises(UserError, match="gradient of step 0 is not finite"):
        run(tmp_path, layers=nn.Sequential(*list(layers)[:3], _Applied(Endless), layers[3]))
    after = layers.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in ("1.weight", "1.bias"))
    assert not (tmp_path / "checkpoint.pt").exists()


class _Applied(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        applied: Tensor = self.function.apply(x)
        return applied
