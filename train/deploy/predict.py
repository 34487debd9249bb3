"""Score any images with a run's detectors: a table, and pictures of each image. It needs only the run folder."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.census import Note
from pipeline.errors import UserError
from pipeline.files import files_of, refuse_in_the_way, replacing_folder
from pipeline.progress import progress
from pipeline.threads import CORES
from pipeline.workers.execution import Execution
from train.calibration import Calibration
from train.card import Card
from train.deploy.choose import choose
from train.deploy.inputs import find_inputs, with_overlays
from train.deploy.pictures import panel_size, write_pictures
from train.deploy.reading import File, Good, read_ahead
from train.deploy.table import OK, Line, write_table
from train.deploy.wanted import OVERLAYS, SUFFIXES, Wanted, beside
from train.detector import Detector
from train.prediction import Prediction
from train.run_folder import find_detector
from train.threshold import rounded

TABLE = "predictions.csv"

# Images that wait to be drawn, per thread.
_WAITING = 4


@dataclass(frozen=True, eq=False)
class Part:
    """What one detector scored.

    category: None where it scored all. calibration: with the threshold that decided; given: whether that is the user's;
    own: the detector's; card: what that is from, where not from its training.
    """

    category: str | None
    calibration: Calibration
    given: bool
    own: float
    card: Card | None
    lines: list[Line]


@dataclass(frozen=True)
class Predicted:
    """The outcome of `predict`: the table's lines, what each detector scored, what was no image, and the seconds."""

    lines: list[Line]
    parts: list[Part]
    left_out: list[Note]
    seconds: float

    @property
    def scored(self) -> list[Line]:
        """The lines of images that have a score."""
        return [line for line in self.lines if line.score is not None]

    @property
    def bad(self) -> list[str]:
        """A line for each image that was skipped."""
        return [f"{line.path}: {line.status}" for line in self.lines if line.score is None]


@dataclass(frozen=True, eq=False)
class _Work:
    """What scores and what is wanted of it; where files go, and the threads that write them."""

    detector: Detector
    wanted: Wanted
    execution: Execution
    new: Path
    threads: ThreadPoolExecutor


def predict(
    run: Path,
    targets: Sequence[str],
    out: Path,
    execution: Execution | None = None,
    wanted: Wanted | None = None,
) -> Predicted:
    """Score image files, and all image files below folders; write `predictions.csv` and pictures to `out`.

    execution: the device, the most pixels of an image, and what to do with a bad one: with "stop" the first raises
    ImageError. Until all images are scored, what an earlier call wrote stays; then it goes. A run of several categories
    scores what lies in folders of their names, or all with the one that is wanted. UserError where `out` holds
    something, but no prediction. Images are read, scored and drawn a bounded number ahead, in threads.
    """
    execution, wanted = execution or Execution(), wanted or Wanted()
    own = _own_files(out)
    found, left_out = find_inputs(targets, out)
    found, categories, others = choose(run, wanted, found)
    named = with_overlays(found, _foreign(out, own), wanted.folders or (OVERLAYS,))
    files = [File(number, *one) for number, one in enumerate(named)]
    refuse_in_the_way(out, TABLE, [beside(folder, file.overlay) for folder in wanted.folders for file in files])
    parts: dict[str | None, list[File]] = {}
    for category, file in zip(categories, files, strict=True):
        parts.setdefault(category, []).append(file)
    detectors = {category: find_detector(run, category) for category in parts}  # all, before one is used
    lines: dict[int, Line] = {}
    scored = []
    seconds = 0.0
    with (
        replacing_folder(out, last=TABLE) as new,
        # Threads of their own: scoring does not wait for a slow disk. The block ends after the last of them has
        # written, so that none writes to a folder that is gone.
        ThreadPoolExecutor(CORES.count, "pictures") as threads,
        progress("predict", len(files), "images") as advance,
    ):
        for category, some in parts.items():
            detector, own_threshold = _load(detectors[category], execution, wanted)
            started = time.monotonic()
            work = _Work(detector, wanted, execution, new, threads)
            for line in _lines(work, some):
                lines[line[0]] = line[1]
                advance(1)
            seconds += time.monotonic() - started
            of_it = [lines[file.number] for file in some]
            told = category if len(parts) > 1 else None
            scored.append(
                Part(told, detector.calibration, wanted.threshold is not None, own_threshold, detector.card, of_it)
            )
        ordered = [lines[number] for number in range(len(files))]
        write_table(new / TABLE, ordered)
    return Predicted(ordered, scored, [*left_out, *others], seconds)


def _load(file: Path, execution: Execution, wanted: Wanted) -> tuple[Detector, float]:
    """The detector of a file with the threshold that is wanted, and its own."""
    detector = Detector.load(file, execution.device)
    if wanted.threshold is None:
        return detector, detector.threshold
    calibration = replace(detector.calibration, threshold=wanted.threshold)
    return replace(detector, calibration=calibration), detector.threshold


def _lines(work: _Work, files: Sequence[File]) -> Iterator[tuple[int, Line]]:
    """A line for each file, with its number; what is to be drawn is drawn when the last of them is there.

    Bad files are told as soon as they are met, or the first of them ends it.
    """
    detector, wanted, execution = work.detector, work.wanted, work.execution
    decoding = replace(detector.decoding, most_pixels=execution.max_pixels)
    met: deque[tuple[int, Line]] = deque()

    def good() -> Iterator[Good]:
        for found in read_ahead(files, decoding, None if wanted.pictures == "none" else panel_size):
            if isinstance(found, Good):
                yield found
            elif execution.bad_images == "stop":
                found.refuse()
            else:
                threshold = rounded(detector.threshold)
                met.append(
                    (found.file.number, Line(str(found.file.path), None, None, threshold, None, found.reason, False))
                )

    waiting: deque[Future[None]] = deque()
    for found, prediction in _scored(detector, good()):
        drawn = wanted.draws(prediction.anomalous)
        unlike = detector.frames.unlike(found.photo.pixels, found.photo.size) if detector.frames else ""
        if drawn or wanted.maps or wanted.masks:
            waiting.append(work.threads.submit(write_pictures, work.new, found, prediction, detector, wanted, unlike))
        if len(waiting) > _WAITING * CORES.count:
            waiting.popleft().result()
        verdict = prediction.score, prediction.p_value, prediction.threshold, prediction.anomalous
        yield found.file.number, Line(str(found.file.path), *verdict, _status(unlike), drawn)
        while met:
            yield met.popleft()
    yield from met
    for one in waiting:
        one.result()


def _status(unlike: str) -> str:
    return f"{OK}, unlike the normals: {unlike}" if unlike else OK


def _scored(detector: Detector, images: Iterable[Good]) -> Iterator[tuple[Good, Prediction]]:
    """The images and what the detector says of them, in their order."""
    asked: deque[Good] = deque()

    def pixels() -> Iterator[NDArray[np.uint8]]:
        for image in images:
            asked.append(image)
            yield image.photo.pixels

    for prediction in detector.predict_each(pixels()):
        yield asked.popleft(), prediction


def _own_files(out: Path) -> frozenset[str]:
    """What earlier predictions wrote to a folder; UserError where it is not one for predictions."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder: give another --out")
    if (own := files_of(out, TABLE)) is not None:
        return own
    # Hidden files are the system's, or what a killed `predict` left.
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(
            f"{out} holds something, but no prediction of this version: give --out a new folder, or empty this one"
        )
    return frozenset()


def _foreign(out: Path, own: frozenset[str]) -> Iterator[str]:
    """Files that others put among ours, which keep their names."""
    for folder in SUFFIXES:
        for path in (out / folder).rglob("*"):
            if not path.is_dir() and path.relative_to(out).as_posix() not in own:
                yield path.relative_to(out).as_posix()
