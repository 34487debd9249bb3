"""How fast training gets its batches, as ratios side by side: `python benchmarks/stream.py [IMAGES] [REPEATS]`.

The images are real solar cells, enlarged to 512 px PNG files and read at 128 px, with the default settings of training
on the CPU. The first ratio is samples (normals and negatives) per second of the stream without training, over those of
a CutPaste-style loader. The loader opens the PNG files and pastes with Pillow in a torch DataLoader, with one worker
per core. The second ratio is the time of the training loop over the time of as many steps on one fixed batch in memory.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import CORES, add_spread, integers, seconds, spread_table, time_ratios, write_images
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.cache.cache import open_cache
from pipeline.data.datasets import load
from pipeline.precompute import precompute
from pipeline.settings import PrecomputeSettings
from pipeline.threads import CORES as THREADS
from pipeline.threads import torch_threads
from train.cell_folder import CellFolder
from train.localiser.examples import Example, crop_side, make_example
from train.localiser.fit import fit_localiser
from train.localiser.network import Localiser
from train.negatives.stream import Normal, NormalStream
from train.settings import TrainSettings

SIZE = 128
TRAIN = TrainSettings()
COUNT = TRAIN.batch_size + TRAIN.normals


class Pasted(Dataset[Tensor]):
    """Of each PNG file the image and its copy with a patch pasted elsewhere, (2,3,SIZE,SIZE) uint8."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(self.paths[index]).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        area, ratio = random.uniform(0.02, 0.15) * SIZE**2, random.uniform(0.3, 3.3)
        width, height = (min(SIZE - 1, round(side)) for side in ((area / ratio) ** 0.5, (area * ratio) ** 0.5))
        x, y = random.randrange(SIZE - width), random.randrange(SIZE - height)
        negative = image.copy()
        place = random.randrange(SIZE - width), random.randrange(SIZE - height)
        negative.paste(image.crop((x, y, x + width, y + height)), place)
        return torch.from_numpy(np.stack([np.asarray(image), np.asarray(negative)])).permute(0, 3, 1, 2)


def stream_rate(stream: NormalStream, batches: int, seed: int) -> float:
    """Samples per second of the stream with its CutSwap negatives, crops and labels, made on all cores."""

    def numbered() -> Iterator[tuple[Normal, list[int]]]:
        for step, batch in enumerate(islice(stream.batches(COUNT, seed), batches)):
            for i, normal in enumerate(batch.normals(stream.settings)):
                yield normal, [seed, step, i]

    def made(item: tuple[Normal, list[int]]) -> Example:
        kind = TRAIN.negatives if item[1][2] < TRAIN.batch_size else None
        return make_example(item[0], kind, TRAIN.crop, TRAIN.colour_jitter, np.random.default_rng(item[1]))

    return COUNT * batches / seconds(lambda: deque(THREADS.spread(made, numbered()), 0))


def loader_rate(paths: list[Path], batches: int, seed: int) -> float:
    """Samples per second of the loader from its second batch on, so that the start of its workers does not count."""
    repeated = [paths[i % len(paths)] for i in range(batches * TRAIN.batch_size)]
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(Pasted(repeated), TRAIN.batch_size, shuffle=True, num_workers=CORES, generator=generator)
    batched = iter(loader)
    next(batched)
    start = time.perf_counter()
    rest = sum(2 * len(batch) for batch in batched)
    return rest / (time.perf_counter() - start)


def fixed_steps(backbone: Backbone, steps: int) -> None:
    """The steps that `train.localiser.fit` makes, on one batch of examples, two at a time in each thread."""
    localiser = Localiser(backbone)
    weights = list(localiser.parameters())
    optimiser = torch.optim.AdamW(weights, TRAIN.head_lr, weight_decay=TRAIN.weight_decay)
    side = crop_side(TRAIN.crop, (SIZE, SIZE))
    images = (torch.rand(COUNT, 3, side, side) * 255).contiguous(memory_format=torch.channels_last)
    truth = (torch.rand(COUNT, side // 8, side // 8) < 0.1).float()

    def gradient(part: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            shared = backbone.activations(backbone.normalise(part[0]), (localiser.input_stage,))[0]
        with torch.enable_grad():
            loss = F.binary_cross_entropy_with_logits(localiser(shared), part[1], reduction="sum")
            return torch.autograd.grad(loss, weights)

    for _ in range(steps):
        for gradients in THREADS.spread(gradient, zip(images.split(2), truth.split(2), strict=True)):
            for weight, added in zip(weights, gradients, strict=True):
                weight.grad = added if weight.grad is None else weight.grad.add_(added)
        torch.nn.utils.clip_grad_norm_(weights, 2.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def main(images: int, repeats: int) -> None:
    table = spread_table("", f"{images} images, {repeats} repeats, {CORES} cores, CPU")
    with tempfile.TemporaryDirectory() as folder:
        paths, store = write_images(Path(folder, "images"), images), f"{folder}/cache.zarr"
        precompute([(load("folder", f"{folder}/images"), store)], PrecomputeSettings(image_size=SIZE))
        cells = open_cache(store)["cells"]
        stream = NormalStream(cells, np.arange(images))
        stream_rate(stream, 20, 0)  # warm up
        ours, theirs = [], []
        for seed in range(repeats):
            ours.append(stream_rate(stream, 100, seed))
            theirs.append(loader_rate(paths, 40, seed))
        add_spread(table, "stream, samples per second", ours, 0)
        add_spread(table, "Pillow loader, samples per second", theirs, 0)
        add_spread(table, "stream over loader", [a / b for a, b in zip(ours, theirs, strict=True)], 1)
        add_spread(table, "training loop over fixed batch", loop_ratios(stream, repeats), 3)
    Console().print(table)


def loop_ratios(stream: NormalStream, repeats: int) -> list[float]:
    """Seconds of the default training loop over those of the same steps on one batch in memory."""
    settings = TrainSettings(steps=50)  # one checkpoint, as many per step as by default
    backbone = for_inference(load_backbone(stream.settings.backbone, stream.settings.weights))

    def loop() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit_localiser(backbone, stream, settings, 0, CellFolder(Path(folder)), lambda _: None)

    def fixed() -> None:
        fixed_steps(backbone, settings.steps)

    with torch_threads(1):  # as in `train.cell`
        loop()
        fixed()
        return time_ratios(loop, fixed, repeats)


if __name__ == "__main__":
    main(*integers(sys.argv[1:], 256, 7))
