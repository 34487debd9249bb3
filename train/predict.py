"""Score any images with a run's detector: a table, and an overlay an image; needs the run folder alone."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from pipeline.device import choose_device
from pipeline.errors import ImageError, UserError
from pipeline.files import replacing_folder
from pipeline.images import decode_rgb
from pipeline.progress import progress
from pipeline.roots import list_images
from train.detector import Detector, load_detector
from train.run_folder import find_detector as find_detector

_IMAGES_AT_ONCE = 64
_TABLE = "predictions.csv"


@dataclass(frozen=True)
class Prediction:
    """path as the user gave it; score on the detector's scale; anomalous where it lies above the threshold."""

    path: str
    score: float
    anomalous: bool


def predict(
    run: Path, targets: Sequence[str], out: Path, *, device: str = "auto", bad_images: str = "stop"
) -> tuple[list[Prediction], list[str]]:
    """Score image files, and all image files below folders; write `predictions.csv` and overlays to `out`.

    Returns the predictions, and a line for each image that could not be read and was skipped. With bad_images "stop"
    the first of these raises ImageError. Until all images are scored, an earlier table and its overlays stay.
    """
    detector = load_detector(find_detector(run), choose_device(device))
    files = list(_files(targets))
    overlays = _overlay_names([name for _, name in files])
    predictions: list[Prediction] = []
    bad: list[str] = []
    waiting = iter(zip([path for path, _ in files], overlays, strict=True))
    with replacing_folder(out, last=_TABLE) as new, progress("predict", len(files), "images") as advance:
        while chunk := list(islice(waiting, _IMAGES_AT_ONCE)):
            readable = [(path, name, _read(path, detector, bad_images, bad)) for path, name in chunk]
            readable_now = [(path, name, image) for path, name, image in readable if image is not None]
            predictions += _score(detector, readable_now, new)
            advance(len(chunk))
        with (new / _TABLE).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "score", "anomalous"])
            table.writerows([p.path, repr(p.score), int(p.anomalous)] for p in predictions)
    return predictions, bad


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


def _overlay_names(names: Sequence[str]) -> list[str]:
    """A PNG name for each; two sources that would share one get a number."""
    taken: set[str] = set()
    overlays = []
    for name in names:
        stem = str(Path(name).with_suffix(""))
        overlay, number = f"{stem}.png", 1
        while overlay in taken:
            number += 1
            overlay = f"{stem}-{number}.png"
        taken.add(overlay)
        overlays.append(overlay)
    return overlays


def _read(path: Path, detector: Detector, bad_images: str, bad: list[str]) -> NDArray[np.uint8] | None:
    try:
        data = path.read_bytes()
        return decode_rgb(data, detector.cache.image_size, detector.cache.resize, str(path))
    except (ImageError, OSError) as error:
        problem = str(error) if isinstance(error, ImageError) else f"{path} cannot be read ({error.strerror})"
        if bad_images == "stop":
            raise ImageError(f"{problem}; mend or leave it out, or give --bad-images skip") from error
        bad.append(problem)
        return None


def _score(detector: Detector, chunk: Sequence[tuple[Path, str, NDArray[np.uint8]]], out: Path) -> list[Prediction]:
    if not chunk:
        return []
    scores = detector.score(image for _, _, image in chunk)
    decisive = detector.decisive(scores)
    for (_, name, image), anomaly_map in zip(chunk, scores.maps, strict=True):
        path = out / "overlays" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(overlay(image, anomaly_map, detector.map_range)).save(path)
    return [
        Prediction(str(path), float(score), bool(score > detector.threshold))
        for (path, _, _), score in zip(chunk, decisive, strict=True)
    ]


def overlay(
    image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], map_range: tuple[float, float]
) -> NDArray[np.uint8]:
    """An image (H,W,3) with its anomaly map (H,W) over it: clear at the normals' median, opaque at twice their most."""
    low, high = map_range
    heat = np.clip((anomaly_map - low) / max(2 * high - low, 1e-9), 0, 1)
    colours = colormaps["inferno"](heat)[..., :3] * 255
    alpha = 0.8 * heat[..., None]
    blended: NDArray[np.uint8] = (image * (1 - alpha) + colours * alpha).astype(np.uint8)
    return blended
