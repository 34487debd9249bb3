"""How fast stage 2 is fed, as ratios measured side by side: `python benchmarks/stream.py [IMAGES] [REPEATS]`.

Real solar-cell images, enlarged to 512 px PNG files, at 128 px, with the default settings of training, on the CPU:
samples (normals and negatives) a second of the stream alone, over those of a CutPaste-style loader that opens the PNG
files and pastes with Pillow in a torch DataLoader with a worker a core; and the time of the training loop over the time
of as many of its steps on one fixed batch in memory.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from precompute import CORES, seconds, write_images
from rich.console import Console
from rich.table import Table
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
    """A normal and the same with a patch of it pasted elsewhere, (2,3,SIZE,SIZE) uint8, of a PNG file."""

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
    """Samples a second of the stream with its CutSwap negatives."""
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    for batch in islice(stream.batches(TRAIN.batch_size, seed), batches):
        normals = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
        make_negatives("cutswap", normals, batch.pairs, cache, rng)
    return 2 * TRAIN.batch_size * batches / (time.perf_counter() - start)


def loader_rate(paths: list[Path], batches: int, seed: int) -> float:
    """Samples a second of the loader, counted from its second batch on: starting its workers is not held against it."""
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
    table = Table("", "median", "least", "most", title=f"{images} images, {repeats} repeats, {CORES} cores, CPU")

    def row(name: str, values: list[float], digits: int) -> None:
        table.add_row(name, *(f"{value:.{digits}f}" for value in (median(values), min(values), max(values))))

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = write_images(folder, images)
        store = str(folder / "cache.zarr")
        precompute([(load("folder", str(folder / "images")), store)], PrecomputeSettings(image_size=SIZE))
        cells = open_cache(store)["cells"]
        cache, stream = cells.settings, NormalStream(cells, np.arange(images))
        stream_rate(stream, cache, 200, 0)  # warm up
        ours, theirs = [], []
        for seed in range(repeats):
            ours.append(stream_rate(stream, cache, 500, seed))
            theirs.append(loader_rate(paths, 40, seed))
        row("stream, samples a second", ours, 0)
        row("Pillow loader, samples a second", theirs, 0)
        row("stream over loader", [a / b for a, b in zip(ours, theirs, strict=True)], 1)
        row("training loop over fixed batch", loop_ratios(stream, images, cache, repeats), 3)
    Console().print(table)


def loop_ratios(stream: NormalStream, images_in_all: int, cache: PrecomputeSettings, repeats: int) -> list[float]:
    """Seconds of the default training loop over those of the same steps on one batch that is there already."""
    settings = TrainSettings(steps=50)  # one checkpoint, as many as the default has a step
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
    return [seconds(loop) / seconds(fixed) for _ in range(repeats)]


if __name__ == "__main__":
    given = [int(value) for value in sys.argv[1:]]
    main(*given, *(256, 7)[len(given) :])
