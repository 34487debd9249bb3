"""Stage 1 on a GPU, as ratios: over the bare network, over decoding alone, over the script of `benchmarks/naive.py`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import naive
import numpy as np
import torch
from PIL import Image
from rich.table import Table

from pipeline.backbones.load import Backbone, load_backbone
from pipeline.backbones.spec import choose_stages
from pipeline.data.datasets import load
from pipeline.data.images import decode_rgb
from pipeline.precompute import precompute
from pipeline.saliency import layercam
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution

SETTINGS = replace(PrecomputeSettings(), stages=choose_stages("efficientnet_lite0"))
BATCH = 64


def seconds(action: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def convert(paths: Sequence[Path], root: Path, size: int, suffix: str) -> list[Path]:
    """The images at another size and format below `root`, in the layout of MVTec AD."""
    target = root / "cells" / "train" / "good"
    target.mkdir(parents=True)
    for path in paths:
        Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC).save(
            target / f"{path.stem}{suffix}"
        )
    return sorted(target.iterdir())


def stage(root: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        precompute([(load("folder", str(root)), f"{out}/cache.zarr")], SETTINGS, Execution(device="cuda"))


def bare(backbone: Backbone, images: torch.Tensor) -> None:
    for part in images.split(BATCH):
        layercam(backbone, backbone.normalise(part.to("cuda")), SETTINGS.stages)


def decode(paths: Sequence[Path]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: decode_rgb(path.read_bytes(), SETTINGS.image_size, "stretch", path.name), paths))


def gpu_table(folder: Path, paths: Sequence[Path], repeats: int) -> Table:
    """The rows that need a CUDA device; paths: PNG files to make the images of."""
    backbone = load_backbone("efficientnet_lite0").to("cuda")
    # Uncompressed and of the network's size: as good as decoded.
    decoded = convert(paths, folder / "decoded", SETTINGS.image_size, ".ppm")
    large = convert(paths, folder / "large", 1024, ".png")
    pixels = np.stack([decode_rgb(path.read_bytes(), SETTINGS.image_size, "stretch", path.name) for path in decoded])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    few = paths[: max(4, len(paths) // 16)]
    trained = load_backbone("efficientnet_lite0").to("cuda").requires_grad_(True)

    def script() -> None:
        naive.run(trained, few, SETTINGS, folder / "naive-gpu")

    cases = {
        "stage 1, images decoded, over the bare network": (folder / "decoded", lambda: bare(backbone, images), 1.0),
        "stage 1, 1024 px PNG, over decoding alone": (folder / "large", lambda: decode(large), 1.0),
        "stage 1 over the script": (folder / "images", script, len(paths) / len(few)),
    }
    title = f"{len(paths)} images, {repeats} repeats, {torch.cuda.get_device_name()}, {os.cpu_count()} cores"
    table = Table("ratio", "median", "least", "most", title=title)
    for name, (root, theirs, scale) in cases.items():
        stage(root)  # warm up
        ratios = [scale * seconds(theirs) / seconds(partial(stage, root)) for _ in range(repeats)]
        table.add_row(name, f"{median(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}")
    return table
