"""Train the localiser on negatives that are made while they are streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.backbones.load import Backbone
from pipeline.errors import UserError
from pipeline.progress import Advance
from pipeline.threads import CORES
from train.cell_folder import CellFolder
from train.localiser.examples import Example, make_example
from train.localiser.labels import CHANGED, IGNORED
from train.localiser.network import Localiser
from train.negatives.stream import Normal, NormalStream
from train.optimise import Plan, optimise
from train.settings import TrainSettings

_WARM_UP = 20
_GRADIENT_NORM = 2.0
_WEIGHT_OF_UNCHANGED = 0.5
# Examples whose gradient is computed at once: three fill a core better than one, and the six of a step feed two cores.
_AT_ONCE = 3


@dataclass(frozen=True, eq=False)
class _Part:
    """Images (B,3,s,s) float32, the labels (B,s/8,s/8) of their cells, and the divisor of the batch's loss."""

    images: Tensor
    labels: Tensor
    divisor: int


def fit_localiser(
    backbone: Backbone, stream: NormalStream, settings: TrainSettings, seed: int, cell: CellFolder, advance: Advance
) -> Localiser:
    """A localiser on the backbone's device, trained for `settings.steps` steps; see `optimise`.

    backbone: for inference; it stays as it is. UserError where no negative shows a change.
    """
    torch.manual_seed(seed)  # of the first weights of what is new; all else is drawn from (seed, step, example)
    localiser = Localiser(backbone)
    if settings.backbone_lr == 0:
        localiser.stages.requires_grad_(False)
    trunk = [parameter for parameter in localiser.stages.parameters() if parameter.requires_grad]
    head = [*localiser.bring.parameters(), *localiser.head.parameters()]
    groups = [{"params": head, "peak": settings.head_lr}, {"params": trunk, "peak": settings.backbone_lr}]
    optimiser = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=0.0, weight_decay=settings.weight_decay
    )

    def loss_of(part: _Part) -> Tensor:
        with torch.no_grad():
            shared = backbone.activations(backbone.normalise(part.images), (localiser.input_stage,))[0]
        return _loss(localiser(shared), part)

    shown: list[int] = []

    def batches(start: int) -> Iterator[list[_Part]]:
        for changed, parts in _batches(stream, settings, seed, start, backbone.device):
            shown.append(changed)
            yield parts

    plan = Plan(settings.steps, _WARM_UP, _GRADIENT_NORM)
    optimise(localiser, optimiser, batches, loss_of, plan, cell, advance)
    if shown and not any(shown):
        raise UserError("no negative shows a change, as in blank images: give --negatives none, or other images")
    return localiser.eval().requires_grad_(False)


def _loss(logits: Tensor, part: _Part) -> Tensor:
    """Cross-entropy of cells, each weighed by what is missing of its truth's probability, per changed cell.

    The weight is that of the focal loss with exponent 1 (Lin et al., ICCV 2017, arXiv 1708.02002), without a gradient.
    """
    truth = (part.labels == CHANGED).to(logits)
    missing = (truth - logits.detach().sigmoid()).abs()
    weight = missing * torch.where(truth > 0, 1.0, _WEIGHT_OF_UNCHANGED) * (part.labels != IGNORED)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (weight * entropy).sum() / part.divisor


def _batches(
    stream: NormalStream, settings: TrainSettings, seed: int, start: int, device: torch.device
) -> Iterator[tuple[int, list[_Part]]]:
    """Of every batch from step `start` on its changed cells, and its parts.

    Negatives come first, then half as many normals, of different images.
    """
    negatives = settings.batch_size
    count = negatives + settings.normals

    def numbered() -> Iterator[tuple[Normal, str | None, list[int]]]:
        for step, batch in enumerate(stream.batches(count, seed, start), start):
            for i, normal in enumerate(batch.normals(stream.settings)):
                yield normal, settings.negatives if i < negatives else None, [seed, step, i]

    def made(item: tuple[Normal, str | None, list[int]]) -> Example:
        normal, kind, key = item
        return make_example(normal, kind, settings.crop, settings.colour_jitter, np.random.default_rng(key))

    examples = CORES.spread(made, numbered())
    at_once = _AT_ONCE if device.type == "cpu" else count
    while batch := list(islice(examples, count)):
        changed = sum(int((example.labels == CHANGED).sum()) for example in batch)
        # A batch in which little shows must not weigh more than others: one cell per negative at least.
        divisor = max(negatives, changed)
        yield changed, [_part(batch[i : i + at_once], divisor, device) for i in range(0, count, at_once)]


def _part(examples: list[Example], divisor: int, device: torch.device) -> _Part:
    images, labels = (
        torch.from_numpy(np.stack(arrays)).to(device)
        for arrays in ([example.image for example in examples], [example.labels for example in examples])
    )
    return _Part(images.contiguous(memory_format=torch.channels_last), labels, divisor)
