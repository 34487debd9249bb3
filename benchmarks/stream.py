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

from pipeline.backbones.load import load_backbone
from pipeline.cache.cache import open_cache
from pipeline.data.datasets import load
from pipeline.precompute import precompute
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

SIZE = 128
TRAIN = TrainSettings()


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


def stream_rate(stream: NormalStream, cache: PrecomputeSettings, batches: int, seed: int) -> float:
    """Samples per second of the stream with its CutSwap negatives."""
    rng = np.random.default_rng(seed)

    def read() -> None:
        for batch in islice(stream.batches(TRAIN.batch_size, seed), batches):
            normals = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
            make_negatives("cutswap", normals, batch.pairs, cache, rng)

    return 2 * TRAIN.batch_size * batches / seconds(read)


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


# Images, changed pixels, rows and labels of a batch.
Examples = tuple[Tensor, Tensor, Tensor, Tensor]


def fixed_steps(network: CutSwapNetwork, contrast: Contrast, batch: Examples, settings: TrainSettings) -> None:
    """The steps that `train.fit` makes, on one batch."""
    optimiser = torch.optim.SGD(
        network.head.parameters(), settings.head_lr, settings.momentum, weight_decay=settings.weight_decay
    )
    images, changed, rows, labels = batch
    for _ in range(settings.steps):
        loss = F.cross_entropy(network.classify(contrast.update(images, changed, rows)), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss.item()


def main(images: int, repeats: int) -> None:
    table = spread_table("", f"{images} images, {repeats} repeats, {CORES} cores, CPU")
    with tempfile.TemporaryDirectory() as folder:
        paths, store = write_images(Path(folder, "images"), images), f"{folder}/cache.zarr"
        precompute([(load("folder", f"{folder}/images"), store)], PrecomputeSettings(image_size=SIZE))
        cells = open_cache(store)["cells"]
        cache, stream = cells.settings, NormalStream(cells, np.arange(images))
        stream_rate(stream, cache, 200, 0)  # warm up
        ours, theirs = [], []
        for seed in range(repeats):
            ours.append(stream_rate(stream, cache, 500, seed))
            theirs.append(loader_rate(paths, 40, seed))
        add_spread(table, "stream, samples per second", ours, 0)
        add_spread(table, "Pillow loader, samples per second", theirs, 0)
        add_spread(table, "stream over loader", [a / b for a, b in zip(ours, theirs, strict=True)], 1)
        add_spread(table, "training loop over fixed batch", loop_ratios(stream, images, cache, repeats), 3)
    Console().print(table)


def loop_ratios(stream: NormalStream, images_in_all: int, cache: PrecomputeSettings, repeats: int) -> list[float]:
    """Seconds of the default training loop over those of the same steps on one batch in memory."""
    settings = TrainSettings(steps=50)  # one checkpoint, as many per step as by default
    trunk = load_backbone(cache.backbone, cache.weights)
    recipe = recipe_of(cache.backbone, settings)
    network = CutSwapNetwork(trunk, recipe, settings.classes(len(cache.stages)), frozen=True)
    network.backbone.requires_grad_(False)
    rows = np.arange(images_in_all)
    normals = embed_normals(trunk, recipe, NormalImages(stream, rows), rows, 0)
    contrast = Contrast(trunk, recipe, normals, 0)
    size = settings.batch_size
    images = torch.randint(0, 256, (2 * size, 3, SIZE, SIZE)).float()
    images = images.contiguous(memory_format=torch.channels_last)  # as in `train.fit`
    # As many patches changed, and as many normals without references, as in the stream.
    changed = torch.zeros(size, SIZE, SIZE, dtype=torch.bool)
    changed[:, : SIZE // 4, : SIZE // 4] = True
    batch = images, changed, torch.arange(size), torch.arange(2 * size) // size

    def loop() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit(network, stream, settings, 0, CellFolder(Path(folder)), lambda _: None, contrast)

    def fixed() -> None:
        fixed_steps(network, contrast, batch, settings)

    loop()
    fixed()
    return time_ratios(loop, fixed, repeats)


if __name__ == "__main__":
    main(*integers(sys.argv[1:], 256, 7))
