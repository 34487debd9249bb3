"""Score any images with a run's detector: a table, and an overlay per image. It needs only the run folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.census import Note
from pipeline.data.images import Decoding, read_rgb
from pipeline.errors import ImageError, UserError, one_line
from pipeline.files import files_of, refuse_in_the_way, replacing_folder, write_csv
from pipeline.progress import progress
from pipeline.threads import CORES
from pipeline.workers.execution import Execution
from train.deploy.inputs import find_inputs, with_overlays
from train.deploy.overlay import write_overlay
from train.detector import Detector
from train.prediction import Prediction
from train.threshold import DECIMALS, rounded

_TABLE = "predictions.csv"
_COLUMNS = ("path", "score", "p_value", "threshold", "anomalous", "status")
_OVERLAYS = "overlays"

# Overlays that wait to be drawn, per thread: each holds an image and its map.
_WAITING = 4

# Which images get an overlay: by whether they are anomalous.
_DRAWN: dict[str, tuple[bool, ...]] = {"all": (False, True), "anomalous": (True,), "none": ()}


@dataclass(frozen=True)
class Line:
    """What is said of a file; all but the last is a line of the table.

    path as the user gave it; score and threshold on the detector's scale, rounded; p_value as in `Prediction`;
    anomalous: whether the score is above the threshold; status: "ok", or why there is no score; drawn: whether an
    overlay was written.
    """

    path: str
    score: float | None
    p_value: float | None
    threshold: float
    anomalous: bool | None
    status: str
    drawn: bool

    @property
    def row(self) -> tuple[object, ...]:
        """It in the table, where the numbers are as they were compared."""
        anomalous = None if self.anomalous is None else int(self.anomalous)
        return self.path, *map(_decimal, (self.score, self.p_value, self.threshold)), anomalous, self.status


@dataclass(frozen=True)
class Predicted:
    """The outcome of `predict`: the table's lines, and what was no image."""

    lines: list[Line]
    left_out: list[Note]

    @property
    def scored(self) -> list[Line]:
        """The lines of images that have a score."""
        return [line for line in self.lines if line.score is not None]

    @property
    def bad(self) -> list[str]:
        """A line for each image that was skipped."""
        return [f"{line.path}: {line.status}" for line in self.lines if line.score is None]


@dataclass(frozen=True, eq=False)
class _Image:
    """Pixels (size,size,3) uint8 of a file, its place among the files, and the name of its overlay."""

    number: int
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
    earlier table and its overlays stay; then they go. UserError where `out` holds something, but no prediction.
    Images are read, scored and drawn a bounded number ahead, in threads.
    """
    execution = execution or Execution()
    own = _own_files(out)
    found, left_out = find_inputs(targets, out)
    files = list(with_overlays(found, _foreign(out, own)))
    if _DRAWN[pictures]:
        refuse_in_the_way(out, _TABLE, [f"{_OVERLAYS}/{overlay}" for _, overlay in files])
    detector = Detector.load(run, execution.device)
    lines: dict[int, Line] = {}
    drawing: deque[Future[None]] = deque()
    with (
        replacing_folder(out, last=_TABLE) as new,
        # Threads of their own: scoring does not wait for a slow disk. The block ends after the last of them has
        # written, so that none writes to a folder that is gone.
        ThreadPoolExecutor(CORES.count, "overlays") as threads,
        progress("predict", len(files), "images") as advance,
    ):
        read = _read_ahead(files, replace(detector.decoding, most_pixels=execution.max_pixels))
        good = _without_bad(read, files, rounded(detector.threshold), execution.bad_images, lines)
        for image, prediction in _scored(detector, good):
            drawn = prediction.anomalous in _DRAWN[pictures]
            if drawn:
                file = new / _OVERLAYS / image.overlay
                what = image.pixels, prediction.map, detector.calibration.map_range
                drawing.append(threads.submit(write_overlay, file, *what))
            if len(drawing) > _WAITING * CORES.count:
                drawing.popleft().result()
            path = str(files[image.number][0])
            verdict = prediction.score, prediction.p_value, prediction.threshold, prediction.anomalous
            lines[image.number] = Line(path, *verdict, "ok", drawn)
            advance(1)
        if bad := sum(line.score is None for line in lines.values()):
            advance(bad)
        for waiting in drawing:
            waiting.result()
        ordered = [lines[number] for number in range(len(files))]
        write_csv(new / _TABLE, [_COLUMNS, *(line.row for line in ordered)])
    return Predicted(ordered, left_out)


def _decimal(value: float | None) -> Decimal | None:
    """A number with all its decimals; as a text, one below 0 would be taken for a formula."""
    return None if value is None else Decimal(f"{value:z.{DECIMALS}f}")


def _own_files(out: Path) -> frozenset[str]:
    """What earlier predictions wrote to a folder; UserError where it is not one for predictions."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder: give another --out")
    if (own := files_of(out, _TABLE)) is not None:
        return own
    # Hidden files are the system's, or what a killed `predict` left.
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(
            f"{out} holds something, but no prediction of this version: give --out a new folder, or empty this one"
        )
    return frozenset()


def _foreign(out: Path, own: frozenset[str]) -> Iterator[str]:
    """Files that others put among the overlays, which keep their names."""
    for path in (out / _OVERLAYS).rglob("*"):
        if not path.is_dir() and path.relative_to(out).as_posix() not in own:
            yield path.relative_to(out / _OVERLAYS).as_posix()


def _read_ahead(files: Iterable[tuple[Path, str]], decoding: Decoding) -> Iterator[_Image | ImageError]:
    """The files in their order, or what is wrong with them."""

    def read(numbered: tuple[int, tuple[Path, str]]) -> _Image | ImageError:
        number, (path, overlay) = numbered
        try:
            return _Image(number, overlay, read_rgb(path, decoding))
        except ImageError as error:
            return error

    return CORES.spread(read, enumerate(files))


def _without_bad(
    read: Iterable[_Image | ImageError],
    files: Sequence[tuple[Path, str]],
    threshold: float,
    bad_images: str,
    lines: dict[int, Line],
) -> Iterator[_Image]:
    """The images; a line for each file that is none, or ImageError."""
    for number, found in enumerate(read):
        if isinstance(found, _Image):
            yield found
        elif bad_images == "stop":
            raise ImageError(f"{one_line(found)}, or give --bad-images skip") from found
        else:
            path = files[number][0]
            # A file of the working directory is called ./x there.
            reason = str(found).removeprefix("./").removeprefix(f"{path}: ")
            lines[number] = Line(str(path), None, None, threshold, None, one_line(ImageError(reason)), False)


def _scored(detector: Detector, images: Iterable[_Image]) -> Iterator[tuple[_Image, Prediction]]:
    """The images and what the detector says of them, in their order."""
    asked: deque[_Image] = deque()

    def pixels() -> Iterator[NDArray[np.uint8]]:
        for image in images:
            asked.append(image)
            yield image.pixels

    for prediction in detector.predict_each(pixels()):
        yield asked.popleft(), prediction
