"""What a GPU gives: `make gpu IMAGES=DIR`, or only `PYTHONPATH=. python benchmarks/gpu.py DIR`.

DIR is a plain folder of PNG files, or a data set folder, of which the normals are taken; at most 384 images are used.
Each part is a process of its own with a time limit of its own, so that a part that fails or is slow takes nothing from
the others. Each metric is printed as soon as it is known: the median, with the least and the most of the runs; the two
sides of a ratio run in turn. `--device cpu --tiny` shows whether everything works.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from common import CORES, normals_folder
from gpu_parts import PARTS, Plan, say
from PIL import Image

from pipeline.data.datasets import load

MOST_IMAGES = 384
# A part needs this long to load torch and start the device.
LEAST_SECONDS = 15.0


def prepare(plan: Plan, sources: Sequence[Path]) -> None:
    """Folders of the images: given; large (1024 px PNG); decoded (PPM at the network's size: next to no decoding)."""
    for name, size, suffix in (("large", plan.large, ".png"), ("decoded", plan.settings.image_size, ".ppm")):
        folder = normals_folder(plan.work / name)

        def write(number: int, folder: Path = folder, size: int = size, suffix: str = suffix) -> None:
            image = Image.open(sources[number]).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            image.save(folder / f"{number:05}{suffix}")

        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(write, range(len(sources))))
    folder = normals_folder(plan.work / "given")
    for number, source in enumerate(sources):
        (folder / f"{number:05}{source.suffix}").symlink_to(source)


def start_part(name: str, plan: Plan) -> None:
    os.setsid()  # the part and its commands are stopped together
    PARTS[name][0](plan)


def run_part(name: str, plan: Plan) -> bool:
    """Run one part in a process of its own for at most the seconds of the plan; whether nothing failed."""
    say(f"-- {name}")
    process = multiprocessing.get_context("spawn").Process(target=start_part, args=(name, plan))
    process.start()
    try:
        process.join(plan.seconds)
        if process.exitcode is None:
            say(f"{name}: skipped the rest, {plan.seconds:.0f} s are up")
            return True
        if process.exitcode:
            say(f"{name}: failed")
        return process.exitcode == 0
    finally:
        if process.is_alive():
            with suppress(ProcessLookupError):  # it has no group of its own before its first line
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()


def main() -> int:
    """0, or 1 where a part failed; a part that there was no time for has not failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=390, help="at most, in all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="8 tiny images: shows that it works, measures nothing")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu --tiny shows whether everything else works")
    stop = time.monotonic() + given.seconds
    dataset = load("folder", str(given.images))
    sources = [Path(dataset.image_root, s.path) for category in dataset.categories for s in category.train]
    sources = sources[: 8 if given.tiny else MOST_IMAGES]
    fine = True
    with tempfile.TemporaryDirectory() as work:
        plan = Plan(Path(work), given.device, given.repeats, given.tiny)
        prepare(plan, sources)
        say(f"{len(sources)} images of {given.images}, {plan.settings.image_size} px")
        for name in given.only:
            left = min(PARTS[name][1], stop - time.monotonic())
            if left < LEAST_SECONDS:
                say(f"{name}: skipped, {given.seconds:.0f} s are up")
            else:
                fine &= run_part(name, replace(plan, seconds=left))
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
