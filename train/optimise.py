"""Steps of an optimiser over parts of a batch: one cosine cycle, checkpoints and resume.

The gradient of each part is computed in a thread of its own, and gradients are added in the order of the parts: so the
weights depend neither on the number of threads nor on the time. Whoever makes the batches draws all that is random in
step s from a generator of (seed, s): a run that is stopped and resumed ends with the weights of an unbroken one.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.files import read_tensors, write_csv, write_tensors
from pipeline.progress import Advance
from pipeline.threads import CORES
from train.cell_folder import CellFolder

_STEPS_BETWEEN_CHECKPOINTS = 50
_LOWER = "train with lower learning rates (--head-lr, --backbone-lr)"

Part = TypeVar("Part")


@dataclass(frozen=True)
class Plan:
    """Steps, those of them in which the rate rises to its peak, and the largest norm of a step's gradient."""

    steps: int
    warm_up: int = 0
    gradient_norm: float = math.inf

    def rate(self, step: int) -> float:
        """The share of the peak rate, 0..1: it rises, and falls along a half cosine."""
        rising = min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0
        return rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def optimise(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Callable[[int], Iterator[Iterable[Part]]],
    loss_of: Callable[[Part], Tensor],
    plan: Plan,
    cell: CellFolder,
    advance: Advance,
) -> None:
    """Train the parameters of `network` that want a gradient, in place.

    optimiser: each group has the key "peak", its highest rate. batches: the parts of every batch, from a step on.
    loss_of: the share of a part in the loss of its batch, which is their sum. cell: gets a log (step, loss, rate,
    seconds since the start or the resume) and a checkpoint; training continues from one that lies there. UserError
    where the loss of a step is not finite; the weights are then those of the step before.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    weights = list(trained.values())

    def gradient(part: Part) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad(), torch.backends.cudnn.flags(deterministic=True):
            loss = loss_of(part)
            return loss.detach(), torch.autograd.grad(loss, weights)

    start = _restore(cell.checkpoint, trained, optimiser)
    advance(start)
    rows = _kept_lines(cell.log, start)
    began = time.monotonic()
    on_gpu = weights[0].is_cuda
    for step, parts in zip(range(start, plan.steps), batches(start), strict=False):
        rate = plan.rate(step)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        loss_now = 0.0
        for part_loss, gradients in map(gradient, parts) if on_gpu else CORES.spread(gradient, parts):
            loss_now += part_loss.item()
            for weight, added in zip(weights, gradients, strict=True):
                weight.grad = added if weight.grad is None else weight.grad + added
        if not math.isfinite(loss_now):
            raise UserError(f"the loss of step {step} is not finite: {_LOWER}")
        if not bool(nn.utils.clip_grad_norm_(weights, plan.gradient_norm).isfinite()):
            raise UserError(f"the gradient of step {step} is not finite: {_LOWER}")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rows.append([step, f"{loss_now:.6f}", f"{rate:.6f}", f"{time.monotonic() - began:.1f}"])
        advance(1)
        if (step + 1) % _STEPS_BETWEEN_CHECKPOINTS == 0 or step + 1 == plan.steps:
            write_csv(cell.log, [["step", "loss", "rate", "seconds"], *rows])
            state = {"weights": {name: p.detach() for name, p in trained.items()}, "optimiser": optimiser.state_dict()}
            write_tensors(cell.checkpoint, {"step": step + 1, **state})


@torch.no_grad()
def _restore(checkpoint: Path, trained: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> int:
    """Put back what a checkpoint holds, if there is one; returns the steps done."""
    if not checkpoint.exists():
        return 0
    try:
        state = read_tensors(checkpoint)
        step, weights, steps_of = int(state["step"]), state["weights"], state["optimiser"]
        if {name: w.shape for name, w in weights.items()} != {name: p.shape for name, p in trained.items()}:
            raise ValueError("it holds the weights of another network")
        optimiser.load_state_dict(steps_of)
    except Exception as error:  # read_tensors raises whatever an unpickler met
        raise UserError(f"{checkpoint} cannot be read: delete it, and training starts anew") from error
    for name, parameter in trained.items():
        parameter.copy_(weights[name])
    return step


def _kept_lines(log: Path, steps: int) -> list[list[Any]]:
    """The lines of the first steps; none where the file is damaged: nothing depends on it."""
    if not steps or not log.exists():
        return []
    try:
        with log.open(newline="") as file:
            return list(csv.reader(file))[1 : steps + 1]
    except (UnicodeDecodeError, csv.Error):
        return []
