"""Score any images with a run's detector: a table, and an overlay per image. It needs only the run folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.census import Note, by_reason, notes_of, unlisted
from pipeline.data.ground_truth import beside_photographs
from pipeline.data.images import Decoding, read_rgb
from pipeline.data.listing import list_images
from pipeline.errors import ImageError, UserError
from pipeline.files import replacing_folder, write_csv
from pipeline.progress import progress
from pipeline.threads import CORES
from pipeline.workers.execution import Execution
from train.deploy.overlay import write_overlay
from train.detector import Detector, Prediction

_TABLE = "predictions.csv"

# Overlays that wait to be drawn, per thread: each holds an image and its map.
_WAITING = 4

# Which images get an overlay: by whether they are anomalous.
_DRAWN: dict[str, tuple[bool, ...]] = {"all": (False, True), "anomalous": (True,), "none": ()}


@dataclass(frozen=True)
class Line:
    """What is said of an image; all but the last is a line of the table.

    path as the user gave it; score on the detector's scale; anomalous above its threshold; whether an overlay was
    written.
    """

    path: str
    score: float
    anomalous: bool
    drawn: bool


@dataclass(frozen=True)
class Predicted:
    """The outcome of `predict`: the table's lines, a line for each image that was skipped, and what was no image."""

    lines: list[Line]
    bad: list[str]
    left_out: list[Note]


@dataclass(frozen=True, eq=False)
class _Image:
    """Pixels (size,size,3) uint8 of a file, and the name of its overlay."""

    path: Path
    overlay: str
    pixels: NDArray[np.uint8]


def predict(
    run: Path,
    targets: Sequence[str],
    out: Path,
    execution: Execution | None = None,
    *,
    pictures: str = "all",
) -> Predicted:
    """Score image files, and all image files below folders; write `predictions.csv` and overlays to `out`.

    execution: the device, the most pixels of an image, and what to do with a bad one: with "stop" the first raises
    ImageError. pictures: "all", "anomalous" or "none", the images that get an overlay. Until all images are scored, an
    earlier table and its overlays stay. Images are read, scored and drawn a bounded number ahead, in threads.
    """
    execution = execution or Execution()
    detector = Detector.load(run, execution.device)
    left_out: list[Note] = []
    files = list(_with_overlays(_files(targets, left_out)))
    lines: list[Line] = []
    bad: list[str] = []
    drawing: deque[Future[None]] = deque()
    with (
        replacing_folder(out, last=_TABLE) as new,
        # Threads of their own: scoring does not wait for a slow disk. The block ends after the last of them has
        # written, so that none writes to a folder that is gone.
        ThreadPoolExecutor(CORES.count, "overlays") as threads,
        progress("predict", len(files), "images") as advance,
    ):
        decoding = replace(detector.decoding, most_pixels=execution.max_pixels)
        read = _read_ahead(files, decoding, execution.bad_images, bad)
        for image, prediction in _scored(detector, read):
            drawn = prediction.anomalous in _DRAWN[pictures]
            if drawn:
                file = new / "overlays" / image.overlay
                what = image.pixels, prediction.map, detector.calibration.map_range
                drawing.append(threads.submit(write_overlay, file, *what))
            if len(drawing) > _WAITING * CORES.count:
                drawing.popleft().result()
            lines.append(Line(str(image.path), prediction.score, prediction.anomalous, drawn))
            advance(1)
        if bad:
            advance(len(bad))
        for waiting in drawing:
            waiting.result()
        rows = [(line.path, line.score, int(line.anomalous)) for line in lines]
        write_csv(new / _TABLE, [("path", "score", "anomalous"), *rows])
    return Predicted(lines, bad, left_out)


def _files(targets: Sequence[str], left_out: list[Note]) -> Iterator[tuple[Path, str]]:
    """Every image file, and the name its overlay starts from; into `left_out` what else lies in the folders."""
    for target in map(Path, targets):
        if target.is_dir():
            listing = list_images(str(target))
            beside = beside_photographs(listing.files, twins=False)
            found = [name for name in listing.files if name not in beside]
            left_out += [*notes_of("", by_reason(beside)), *unlisted(listing)]
            if not found:
                raise UserError(f"no image below {target}: give image files, or a folder that holds some")
            yield from ((target / name, name) for name in found)
        elif target.is_file():
            yield target, target.name
        elif target.exists():
            raise UserError(f"{target} is no regular file: give image files or folders")
        else:
            raise UserError(f"{target} does not exist: give image files or folders")


def _with_overlays(files: Iterable[tuple[Path, str]]) -> Iterator[tuple[Path, str]]:
    """Every file, and a JPEG name for it; two sources that would share one get a number."""
    taken: set[str] = set()
    for path, name in files:
        stem = str(Path(name).with_suffix(""))
        overlay, number = f"{stem}.jpg", 1
        while overlay in taken:
            number += 1
            overlay = f"{stem}-{number}.jpg"
        taken.add(overlay)
        yield path, overlay


def _read_ahead(
    files: Iterable[tuple[Path, str]], decoding: Decoding, bad_images: str, bad: list[str]
) -> Iterator[_Image]:
    """The files that can be read, in their order; a line in `bad` for each of the others, or ImageError."""

    def read(file: tuple[Path, str]) -> _Image | ImageError:
        path, name = file
        try:
            return _Image(path, name, read_rgb(path, decoding))
        except ImageError as error:
            return error

    for found in CORES.spread(read, files):
        if isinstance(found, _Image):
            yield found
        elif bad_images == "stop":
            raise ImageError(f"{found}, or give --bad-images skip") from found
        else:
            bad.append(str(found))


def _scored(detector: Detector, images: Iterable[_Image]) -> Iterator[tuple[_Image, Prediction]]:
    """The images and what the detector says of them, in their order."""
    asked: deque[_Image] = deque()

    def pixels() -> Iterator[NDArray[np.uint8]]:
        for image in images:
            asked.append(image)
            yield image.pixels

    for prediction in detector.predict_each(pixels()):
        yield asked.popleft(), prediction
