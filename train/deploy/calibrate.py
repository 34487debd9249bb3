"""A detector's threshold from fresh parts: good ones set it, bad ones tell what it finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.census import Note
from pipeline.data.images import decode_rgb, read_bytes
from pipeline.errors import ImageError, UserError, one_line
from pipeline.files import sha256_of
from pipeline.progress import progress
from pipeline.threads import CORES
from pipeline.workers.execution import Execution
from train.card import Card
from train.deploy.inputs import find_inputs
from train.deploy.reading import Bad, File
from train.detector import Detector
from train.outcome import threshold_line
from train.threshold import DECIMALS, rounded, threshold_at


@dataclass(frozen=True)
class Scored:
    """Fresh parts: their paths, scores (N,) and the largest values (N,) of their maps; bad: why others have none.

    copies: images of the same content as one before them; trained_on: images among the normals of the detector. Both
    are left out.
    """

    paths: list[str]
    scores: NDArray[np.float64]
    peaks: NDArray[np.float64]
    bad: list[str]
    copies: list[str]
    trained_on: list[str]


@dataclass(frozen=True)
class Calibrated:
    """The card, where it lies, the threshold before it, and the good and bad parts it rests on."""

    card: Card
    path: Path
    before: float
    good: Scored
    bad: Scored | None

    @property
    def left_out(self) -> list[str]:
        """A line for each kind of image that took no part."""
        kinds = {"copies of others": "copies", "among the normals that the detector was trained on": "trained_on"}
        parts = [part for part in (self.good, self.bad) if part is not None]
        lines = [f"skipped: {line}" for part in parts for line in part.bad]
        for what, name in kinds.items():
            if images := [path for part in parts for path in getattr(part, name)]:
                lines.append(Note.of("", f"images left out, as they are {what}", images).line)
        return lines

    @property
    def said(self) -> list[str]:
        """The threshold and what it rests on, what it finds of the bad parts, and where the card is."""
        line = threshold_line(self.card.threshold, self.card.false_positives, self.card.asked, "fresh good parts")
        lines = [f"{line}; it was {self.before:.{DECIMALS}f}"]
        if self.bad is not None:
            missed = f"; missed: {Note.of('', '', self.missed).names}" if self.missed else ""
            lines.append(f"{self.card.n_bad_found} of {self.card.n_bad} bad parts are above it{missed}")
        return [*lines, f"{self.path}: predict, export model and report use it while detector.pt stays the same"]

    @property
    def missed(self) -> list[str]:
        """The bad parts that are not above the threshold."""
        if self.bad is None:
            return []
        found = zip(self.bad.paths, self.bad.scores.tolist(), strict=True)
        return [path for path, score in found if rounded(score) <= self.card.threshold]


def calibrate(
    detector_file: Path, good: Path, bad: Path | None, rate: float, execution: Execution | None = None
) -> Calibrated:
    """Score fresh parts and write the card beside a detector's file, which stays as it is.

    good, bad: an image or a folder of images. rate: of false positives that the threshold is for. execution: its
    device, the most pixels of an image, and what to do with a bad one. UserError where no good part is left.
    """
    execution = execution or Execution()
    detector = Detector.load(detector_file, execution.device)
    of_good = _scored(detector, detector_file, good, execution)
    of_bad = None if bad is None else _scored(detector, detector_file, bad, execution)
    if not of_good.paths:
        raise UserError(f"{good} holds no fresh part: give good parts that the detector was not trained on")
    threshold = threshold_at(of_good.scores, rate)
    card = Card(
        threshold,
        threshold_at(of_good.peaks, rate),
        tuple(sorted(map(rounded, of_good.scores.tolist()))),
        rate,
        0 if of_bad is None else len(of_bad.paths),
        0 if of_bad is None else sum(rounded(score) > threshold for score in of_bad.scores.tolist()),
        datetime.now(UTC).date().isoformat(),
        sha256_of(detector_file),
    )
    return Calibrated(card, card.write(detector_file), rounded(detector.threshold), of_good, of_bad)


def _scored(detector: Detector, detector_file: Path, place: Path, execution: Execution) -> Scored:
    inputs, _ = find_inputs([str(place)], detector_file.parent)
    files = [File(number, *one) for number, one in enumerate(inputs)]
    found = Scored([], np.zeros(0), np.zeros(0), [], [], [])
    scores, peaks = list[float](), list[float]()
    with progress("calibrate", len(files), "images") as advance:
        for prediction in detector.predict_each(_fresh(detector, files, execution, found)):
            scores.append(prediction.score)
            peaks.append(float(prediction.map.max()))
            advance(1)
        advance(len(files) - len(scores))
    return replace(found, scores=np.array(scores), peaks=np.array(peaks))


def _fresh(
    detector: Detector, files: Sequence[File], execution: Execution, found: Scored
) -> Iterator[NDArray[np.uint8]]:
    """The images that count, each once, read ahead; what is left out is told in `found`."""
    decoding = replace(detector.decoding, most_pixels=execution.max_pixels)

    def read(file: File) -> tuple[str, NDArray[np.uint8]] | Bad:
        try:
            data = read_bytes(str(file.path.parent), file.path.name)
            return sha256(data).hexdigest(), decode_rgb(data, decoding, str(file.path))
        except ImageError as error:
            return Bad(file, error)

    known: set[str] = set()
    for file, one in zip(files, CORES.spread(read, files), strict=True):
        if isinstance(one, Bad):
            if execution.bad_images == "stop":
                one.refuse()
            found.bad.append(one_line(one.error))
            continue
        digest, image = one
        if detector.knows(digest):
            found.trained_on.append(str(file.path))
        elif digest in known:
            found.copies.append(str(file.path))
        else:
            found.paths.append(str(file.path))
            yield image
        known.add(digest)
