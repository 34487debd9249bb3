"""The two checkouts that `against.py` compares, and what its rows share: sizes, images, caches and detectors."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common import ROOT, Cost, normals_folder, run_command
from PIL import Image, ImageChops


@dataclass(frozen=True)
class Sizes:
    """Numbers of images, sides in pixels, and steps: those of the row train, and of detectors for predict."""

    side: int = 256
    large: int = 512
    demo: int = 128
    images: int = 256
    normals: int = 64
    predicted: int = 41
    many: int = 10_000
    fewer: int = 1_000
    started: int = 100
    in_process: int = 384
    jpeg: tuple[int, int] = (4000, 3000)
    steps: int = 100
    few_steps: int = 10


TINY = Sizes(64, 96, 32, 8, 6, 4, 12, 8, 2, 8, (640, 480), 2, 1)


class Bench:
    """Both checkouts, and what the rows share: folders of images, and for predict the run of each checkout."""

    def __init__(self, base: Path, work: Path, sources: list[Path], repeats: int, tiny: bool) -> None:
        self.base, self.work, self.sources, self.repeats = base, work, sources, repeats
        self.tiny, self.sizes = tiny, TINY if tiny else Sizes()
        # Bytecode too goes to the temporary folder, and is kept from one run to the next.
        self.environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(work / "bytecode")}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(self, checkout: Path, *arguments: object, folder: Path | None = None) -> Cost:
        """The cost of `cli.py ARGUMENTS` of a checkout."""
        command = [sys.executable, checkout / "cli.py", *arguments]
        return run_command(command, folder or self.work, self.environment)

    def compare(self, name: str, ours: Callable[[Path], float], theirs: Callable[[Path], float] | None = None) -> None:
        """Print how many times as fast this checkout is; each action takes the checkout and gives its seconds."""
        theirs = theirs or ours
        if not self.tiny:
            ours(ROOT), theirs(self.base)
        pairs = [(ours(ROOT), theirs(self.base)) for _ in range(self.repeats)]
        show(name, [(base, here) for here, base in pairs])

    def images(self, count: int, size: tuple[int, int], suffix: str = ".png") -> Path:
        """The folder of so many images of a category."""
        root = self.work / f"images-{count}-{size[0]}{suffix}"
        folder = root / "cells" / "train" / "good"
        if folder.exists():
            return folder
        normals_folder(root)
        # Without noise an enlarged image would decode faster than a photograph.
        noise = Image.effect_noise(size, 16) if suffix == ".jpg" else None
        for number in range(count):
            path = folder / f"{number:05}{suffix}"
            if number >= len(self.sources):
                path.symlink_to(folder / f"{number % len(self.sources):05}{suffix}")
                continue
            image = Image.open(self.sources[number]).convert("L").resize(size, Image.Resampling.BICUBIC)
            image = ImageChops.add(image, noise, offset=-128) if noise else image
            image.convert("RGB").save(path, quality=92)
        return folder

    def square(self, count: int, side: int) -> Path:
        """The folder of so many PNG images of this side."""
        return self.images(count, (side, side))

    def precompute(self, checkout: Path, folder: Path, store: Path, *options: object) -> float:
        """Seconds of precompute from a folder of `images` to a new cache."""
        shutil.rmtree(store, ignore_errors=True)
        root = folder.parents[2]
        return self.run(
            checkout, "precompute", "--dataset", "folder", "--root", root, "--store", store, *options
        ).seconds

    def cache_of(self, checkout: Path, side: int) -> Path:
        """The cache of the normals that a checkout made, once."""
        store = self.work / f"{'base' if checkout == self.base else 'here'}-{side}.zarr"
        if not store.exists():
            self.precompute(checkout, self.square(self.sizes.normals, side), store, "--image-size", side)
        return store

    def run_of(self, checkout: Path, side: int) -> Path:
        """The run folder of a detector for images of this side that a checkout made, once."""
        store = self.cache_of(checkout, side)
        run = store.with_suffix(".run")
        if not run.exists():
            self.run(checkout, "train", "--store", store, "--out", run, "--steps", self.sizes.few_steps)
        return run

    def predict(self, checkout: Path, images: Path, side: int, *options: object) -> Cost:
        """The cost of predict of an image or a folder."""
        out = self.work / "predictions"
        cost = self.run(checkout, "predict", self.run_of(checkout, side), images, "--out", out, *options)
        shutil.rmtree(out)
        return cost


def show(name: str, pairs: list[tuple[float, float]]) -> None:
    """Print the ratios and seconds of pairs (the slower side by expectation, the faster one)."""
    ratios = [slow / fast for slow, fast in pairs]
    slow, fast = (median(side) for side in zip(*pairs, strict=True))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{name}: {median(ratios):.2f} times as fast ({spread}; {fast:.3g} s, before {slow:.3g} s)", flush=True)
