"""Score any images with a run's detector: a table, and an overlay per image. It needs only the run folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.images import read_rgb
from pipeline.data.listing import list_images
from pipeline.errors import ImageError, UserError
from pipeline.files import replacing_folder, write_csv
from pipeline.progress import progress
from pipeline.settings import PrecomputeSettings
from train.detector import Detector

_IMAGES_AT_ONCE = 64
_TABLE = "predictions.csv"


@dataclass(frozen=True)
class Line:
    """A line of the table. path as the user gave it; score on the detector's scale; anomalous above its threshold."""

    path: str
    score: float
    anomalous: bool


def predict(
    run: Path, targets: Sequence[str], out: Path, *, device: str = "auto", bad_images: str = "stop"
) -> tuple[list[Line], list[str]]:
    """Score image files, and all image files below folders; write `predictions.csv` and overlays to `out`.

    Returns the table's lines, and a line for each image that could not be read and was skipped. With bad_images "stop"
    the first of these raises ImageError. Until all images are scored, an earlier table and its overlays stay.
    """
    detector = Detector.load(run, device)
    files = list(_with_overlays(_files(targets)))
    lines: list[Line] = []
    bad: list[str] = []
    waiting = iter(files)
    with replacing_folder(out, last=_TABLE) as new, progress("predict", len(files), "images") as advance:
        while chunk := list(islice(waiting, _IMAGES_AT_ONCE)):
            read = [
                (path, name, image)
                for path, name in chunk
                if (image := _read(path, detector.precompute_settings, bad_images, bad)) is not None
            ]
            for (path, name, image), said in zip(read, detector.predict([i for *_, i in read]), strict=True):
                file = new / "overlays" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(overlay(image, said.map, detector.calibration.map_range)).save(file)
                lines.append(Line(str(path), said.score, said.anomalous))
            advance(len(chunk))
        rows = [(line.path, line.score, int(line.anomalous)) for line in lines]
        write_csv(new / _TABLE, [("path", "score", "anomalous"), *rows])
    return lines, bad


def _files(targets: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Every image file, and the name its overlay starts from."""
    for target in map(Path, targets):
        if target.is_dir():
            found = list_images(str(target)).files
            if not found:
                raise UserError(f"no image below {target}: give image files, or a folder that holds some")
            yield from ((target / name, name) for name in found)
        elif target.exists():
            yield target, target.name
        else:
            raise UserError(f"{target} does not exist: give image files or folders")


def _with_overlays(files: Iterable[tuple[Path, str]]) -> Iterator[tuple[Path, str]]:
    """Every file, and a PNG name for it; two sources that would share one get a number."""
    taken: set[str] = set()
    for path, name in files:
        stem = str(Path(name).with_suffix(""))
        overlay, number = f"{stem}.png", 1
        while overlay in taken:
            number += 1
            overlay = f"{stem}-{number}.png"
        taken.add(overlay)
        yield path, overlay


def _read(path: Path, settings: PrecomputeSettings, bad_images: str, bad: list[str]) -> NDArray[np.uint8] | None:
    try:
        return read_rgb(path, settings.image_size, settings.resize)
    except ImageError as error:
        if bad_images == "stop":
            raise ImageError(f"{error}; fix or leave it out, or give --bad-images skip") from error
        bad.append(str(error))
        return None


def overlay(
    image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], map_range: tuple[float, float]
) -> NDArray[np.uint8]:
    """An image (H,W,3) with its anomaly map (H,W) over it: clear at the normals' median, opaque at twice their most."""
    low, high = map_range
    heat = np.clip((anomaly_map - low) / max(2 * high - low, 1e-9), 0, 1)
    colours = colormaps["inferno"](heat)[..., :3] * 255
    alpha = 0.8 * heat[..., None]
    return np.asarray(image * (1 - alpha) + colours * alpha, np.uint8)
