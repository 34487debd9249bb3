"""Precompute on a GPU, as ratios over the bare network, over only decoding, and over `benchmarks/naive.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import naive
import numpy as np
import torch
from common import CORES, add_spread, decode, normals_folder, precompute_folder, spread_table, time_ratios
from PIL import Image
from rich.table import Table

from pipeline.backbones.load import load_backbone
from pipeline.saliency import layercam
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution

BATCH = 64


def convert(paths: Sequence[Path], root: Path, size: int, suffix: str) -> list[Path]:
    """The images at another size and in another format below `root`."""
    target = normals_folder(root)
    for path in paths:
        Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC).save(
            target / f"{path.stem}{suffix}"
        )
    return sorted(target.iterdir())


def gpu_table(folder: Path, paths: Sequence[Path], settings: PrecomputeSettings, repeats: int) -> Table:
    """The rows that need a CUDA device; paths: the PNG files below `folder`/images."""
    backbone = load_backbone("efficientnet_lite0").to("cuda")
    # Uncompressed and of the network's size, so that decoding costs next to nothing.
    decoded = convert(paths, folder / "decoded", settings.image_size, ".ppm")
    large = convert(paths, folder / "large", 1024, ".png")
    images = torch.from_numpy(np.stack(decode(decoded, settings.image_size))).permute(0, 3, 1, 2)
    few = paths[: max(4, len(paths) // 16)]
    trained = load_backbone("efficientnet_lite0").to("cuda").requires_grad_(True)

    def bare() -> None:
        for part in images.split(BATCH):
            layercam(backbone, backbone.normalise(part.to("cuda")), settings.stages)
        # The other actions end with their results in files, so that nothing is left running on the device.
        torch.cuda.synchronize()

    def script() -> None:
        naive.run(trained, few, settings, folder / "naive-gpu")

    cases: dict[str, tuple[Path, Callable[[], object], float]] = {
        "precompute, images decoded, over the bare network": (folder / "decoded", bare, 1.0),
        "precompute, 1024 px PNG, over only decoding": (
            folder / "large",
            partial(decode, large, settings.image_size),
            1.0,
        ),
        "precompute over the script": (folder / "images", script, len(paths) / len(few)),
    }
    title = f"{len(paths)} images, {repeats} repeats, {torch.cuda.get_device_name()}, {CORES} cores"
    table = spread_table("ratio", title)
    for name, (root, theirs, scale) in cases.items():
        ours = partial(precompute_folder, root, settings, Execution(device="cuda"))
        ours()  # warm up
        add_spread(table, name, time_ratios(theirs, ours, repeats, scale))
    return table
