"""Whole commands of this checkout against those of another: `python benchmarks/against.py BASE [ROW ...]`.

BASE is a checkout of another commit. Both run with the Python of this script, in turn, after a run of each that does
not count; "1.3 times as fast" is the seconds of BASE over those of this checkout: the median of the repeats, with the
least and the most. Each row is printed as soon as it is known; `--help` lists the rows. The images are solar cells
(the normals of ELPV's category mono) or those of a folder (`--images DIR`), repeated where there are too few. All is
written to a temporary folder, nothing below the two checkouts. `--tiny` shows whether everything works.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from checkouts import Bench
from common import ROOT

from pipeline.data.datasets import load

NO_PICTURES = ("--pictures", "none")


def precompute(b: Bench) -> None:
    folder = b.square(b.sizes.images, b.sizes.side)
    name = f"precompute, {b.sizes.images} images of {b.sizes.side} px, 2 workers"
    options = ("--workers", 2, "--image-size", b.sizes.side)
    b.compare(name, lambda checkout: b.precompute(checkout, folder, b.work / "precompute.zarr", *options))


def worker(b: Bench) -> None:
    """A second worker, in this checkout only."""
    folder = b.square(b.sizes.normals, b.sizes.side)

    def workers(number: int) -> float:
        options = ("--workers", number, "--image-size", b.sizes.side)
        return b.precompute(ROOT, folder, b.work / "precompute.zarr", *options)

    name = f"precompute, {b.sizes.normals} images, 2 workers against 1"
    b.compare(name, lambda _: workers(2), lambda _: workers(1))


def jpeg(b: Bench) -> None:
    folder = b.images(b.sizes.normals, b.sizes.jpeg, ".jpg")
    name = f"precompute, {b.sizes.normals} JPEGs of {b.sizes.jpeg[0] * b.sizes.jpeg[1] / 1e6:.0f} megapixels"
    options = ("--image-size", b.sizes.side)
    b.compare(name, lambda checkout: b.precompute(checkout, folder, b.work / "precompute.zarr", *options))


def train(b: Bench) -> None:
    out = b.work / "train"

    def whole(checkout: Path) -> float:
        store = b.cache_of(checkout, b.sizes.side)
        shutil.rmtree(out, ignore_errors=True)
        return b.run(checkout, "train", "--store", store, "--out", out, "--steps", b.sizes.steps).seconds

    b.compare(f"train, {b.sizes.normals} normals, {b.sizes.side} px, {b.sizes.steps} steps", whole)


def predict(b: Bench) -> None:
    folder, side = b.square(b.sizes.predicted, b.sizes.side), b.sizes.side
    b.compare(f"predict, {b.sizes.predicted} images", lambda checkout: b.predict(checkout, folder, side).seconds)


def predict_one(b: Bench) -> None:
    image, side = b.square(b.sizes.predicted, b.sizes.side) / "00000.png", b.sizes.side
    b.compare("predict, 1 image", lambda checkout: b.predict(checkout, image, side).seconds)


def predict_large(b: Bench) -> None:
    folder, side = b.square(b.sizes.predicted, b.sizes.large), b.sizes.large
    name = f"predict, {b.sizes.predicted} images of {side} px"
    b.compare(name, lambda checkout: b.predict(checkout, folder, side).seconds)


def predict_many(b: Bench) -> None:
    """Steady rates, from the time that many images take more than few; and whether memory is flat.

    BASE gets fewer images: its rate is as steady, and it is slow.
    """
    side = b.sizes.side
    peaks: list[float] = []

    def steady(checkout: Path, *options: object) -> float:
        """Seconds per 1,000 images."""
        numbers = b.sizes.started, b.sizes.many if checkout == ROOT else b.sizes.fewer
        started, whole = (b.predict(checkout, b.square(number, side), side, *options) for number in numbers)
        if checkout == ROOT:
            peaks.append(whole.peak / started.peak)
        return 1000 * (whole.seconds - started.seconds) / (numbers[1] - numbers[0])

    name = "predict, 1,000 images of many"
    b.compare(f"{name}, no pictures", lambda checkout: steady(checkout, *NO_PICTURES * (checkout == ROOT)))
    b.compare(f"{name}, with pictures over none", steady, lambda _: steady(ROOT, *NO_PICTURES))
    spread = f"{min(peaks):.2f} to {max(peaks):.2f}"
    print(
        f"predict, peak memory of {b.sizes.many} images over {b.sizes.started}: {median(peaks):.2f} ({spread})",
        flush=True,
    )


def demo(b: Bench) -> None:
    """The commands of `make demo` without the installation."""
    cache, size = "data/cache/demo.zarr", ("--image-size", b.sizes.demo)

    def whole(checkout: Path) -> float:
        with tempfile.TemporaryDirectory(dir=b.work) as name:
            commands: tuple[tuple[object, ...], ...] = (
                ("precompute", "--dataset", "elpv", "--category", "mono", *size, "--store", cache),
                ("inspect", cache, "--html", "runs/demo/gallery"),
                ("train", "--store", cache, "--out", "runs/demo"),
            )
            return sum(b.run(checkout, *command, folder=Path(name)).seconds for command in commands)

    b.compare("make demo, without installation", whole)


def in_process(row: str) -> Callable[[Bench], None]:
    """A row of `precompute.py`, which compares this checkout with other code in one process."""

    def measure(b: Bench) -> None:
        script = [sys.executable, ROOT / "benchmarks" / "precompute.py", b.sizes.in_process, b.repeats, row]
        environment = {**b.environment, "PYTHONPATH": str(ROOT)}
        subprocess.run([*map(str, script)], cwd=b.work, env=environment, check=True)

    return measure


ROWS: dict[str, Callable[[Bench], None]] = {
    "precompute": precompute,
    "worker": worker,
    "bare": in_process("plain"),
    "jpeg": jpeg,
    "layercam": in_process("layercam"),
    "kmeans": in_process("kmeans"),
    "train": train,
    "predict": predict,
    "predict-one": predict_one,
    "predict-many": predict_many,
    "predict-large": predict_large,
    "demo": demo,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", type=Path, help="a checkout of another commit")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"default all: {', '.join(ROWS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", metavar="DIR", help="a folder of normal images; default solar cells")
    parser.add_argument("--tiny", action="store_true", help="few tiny images: shows that it works, measures nothing")
    given = parser.parse_intermixed_args()
    if unknown := [row for row in given.rows if row not in ROWS]:
        parser.error(f"unknown rows {', '.join(unknown)}: choose from {', '.join(ROWS)}")
    dataset = load("folder", given.images) if given.images else load("elpv", categories=["mono"])
    sources = [Path(dataset.image_root, s.path) for category in dataset.categories for s in category.train]
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(given.base.resolve(), Path(work), sources, given.repeats, given.tiny)
        for row in given.rows or ROWS:
            ROWS[row](bench)


if __name__ == "__main__":
    main()
