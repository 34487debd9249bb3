"""The training loop: steps of SGD on normals against negatives, one cosine cycle, checkpoints and resume.

All that is random in step s is drawn from a generator of (seed, s), and the stream is read from batch s on: so a run
that is stopped and resumed ends with exactly the weights of an unbroken one.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import write_csv, write_tensors
from pipeline.progress import Advance
from pipeline.settings import PrecomputeSettings
from pipeline.threads import CORES, torch_threads
from train.features.network import CutSwapNetwork
from train.negatives.augment import jitter_colour, translate
from train.negatives.make import make_negatives
from train.negatives.stream import Batch, NormalStream
from train.run_folder import CellFolder
from train.scorers.contrast import Contrast, Moments
from train.settings import TrainSettings

_STEPS_BETWEEN_CHECKPOINTS = 50
# What a seed is used for. The arms draw different amounts for their negatives; their augmentation must be the same.
_NEGATIVES, _AUGMENTATION = 1, 2  # the order of the normals is drawn from (seed, epoch), as if it were 0


def fit(
    network: CutSwapNetwork,
    stream: NormalStream,
    settings: TrainSettings,
    seed: int,
    cell: CellFolder,
    advance: Advance,
    contrast: Contrast | None = None,
) -> None:
    """Train `network`, on its device and in place, for `settings.steps` steps, and show their images to `contrast`.

    cell: gets a log (step, loss, accuracy, rate) and a checkpoint; training continues from one that lies there. Raises
    UserError where the loss is not finite, before the weights are not.
    """
    device = network.backbone.device
    optimiser = _optimiser(network, settings)
    moments = {} if contrast is None else contrast.moments
    start, threads = 0, 1 if network.frozen else CORES.count
    if cell.checkpoint.exists():
        start, threads = _restore(cell.checkpoint, network, optimiser, moments)
    advance(start)
    rows = _kept_lines(cell.log, start)
    network.eval()  # batch statistics stay those of pretraining
    batches = stream.batches(settings.batch_size, seed, start)
    for step, batch in zip(range(start, settings.steps), batches, strict=False):
        rate = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        draws = [np.random.default_rng([seed, step, use]) for use in (_NEGATIVES, _AUGMENTATION)]
        images, labels, changed = _examples(batch, stream.settings, settings, draws, device)
        seen = None if contrast is None else contrast.update(images, changed, torch.from_numpy(batch.rows))
        if seen is not None and network.frozen:
            logits = network.classify(seen)  # one forward serves both
        else:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"), torch_threads(threads):
                logits = network(images).float()
        loss = F.cross_entropy(logits, labels)
        loss_now = loss.item()
        if not math.isfinite(loss_now):
            raise UserError(f"the loss of step {step} is not finite: give a lower --head-lr or --backbone-lr")
        optimiser.zero_grad(set_to_none=True)
        with torch_threads(threads):
            loss.backward()
        optimiser.step()
        accuracy = ((logits.detach().argmax(1) > 0) == (labels > 0)).float().mean()
        rows.append([step, f"{loss_now:.6f}", f"{accuracy.item():.4f}", f"{rate:.6f}"])
        advance(1)
        if (step + 1) % _STEPS_BETWEEN_CHECKPOINTS == 0 or step + 1 == settings.steps:
            write_csv(cell.log, [["step", "loss", "accuracy", "rate"], *rows])
            state = {"network": network.learned_state(), "optimiser": optimiser.state_dict(), "contrast": moments}
            write_tensors(cell.checkpoint, {"step": step + 1, "threads": threads, **state})


def _optimiser(network: CutSwapNetwork, settings: TrainSettings) -> torch.optim.SGD:
    trained = [*network.backbone.stem.parameters(), *network.backbone.stages.parameters()]
    for parameter in trained:
        parameter.requires_grad_(not network.frozen)
    groups = [{"params": list(network.head.parameters()), "peak": settings.head_lr}]
    if not network.frozen:
        groups.append({"params": trained, "peak": settings.backbone_lr})
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, weight_decay=settings.weight_decay)


def _examples(
    batch: Batch,
    cache: PrecomputeSettings,
    settings: TrainSettings,
    draws: Sequence[np.random.Generator],
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """(2B,3,H,W) float images, normals then their negatives, their proxy classes (2B,), and (B,H,W) where they differ.

    draws: of the negatives, and of the augmentation. A negative is augmented just as its normal is: nothing but the
    swap tells the two apart.
    """
    normals = torch.from_numpy(batch.images).to(device).permute(0, 3, 1, 2)
    negatives, group = make_negatives(settings.negatives, normals, batch.pairs, cache, draws[0])
    classes = (1 + group).clamp_(max=settings.classes(len(cache.stages)) - 1)
    normals, negatives = translate(torch.cat([normals, negatives], 1), settings.translation, draws[1]).split(3, dim=1)
    labels = torch.cat([torch.zeros_like(classes), classes])
    changed = (normals != negatives).any(1)
    strength, seed = settings.colour_jitter, draws[1].integers(2**63)
    halves = [jitter_colour(half.float(), strength, np.random.default_rng(seed)) for half in (normals, negatives)]
    images = torch.cat(halves)
    # The layout in which the network's convolutions are fastest; colours are fastest in the other.
    return images.contiguous(memory_format=torch.channels_last), labels.to(device), changed


def _restore(
    checkpoint: Path, network: CutSwapNetwork, optimiser: torch.optim.SGD, moments: Moments
) -> tuple[int, int]:
    """Put back what a checkpoint holds; returns the steps done, and the torch threads of a backbone that is trained."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    network.load_learned(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    for name, values in moments.items():
        values.copy_(state["contrast"][name])
    return int(state["step"]), int(state.get("threads", 1))


def _kept_lines(log: Path, steps: int) -> list[list[Any]]:
    if not steps or not log.exists():
        return []
    with log.open(newline="") as file:
        return list(csv.reader(file))[1 : steps + 1]
