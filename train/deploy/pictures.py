"""What is written of an image beside the table: a picture that shows why, its anomaly map, its mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.images import Decoding, place
from train.deploy.reading import Good
from train.deploy.wanted import MAPS, MASKS, OVERLAYS, Wanted, beside
from train.detector import Detector
from train.prediction import Prediction
from train.threshold import DECIMALS
from train.views.heat import Heat, Picture, outline, resized

# Longest side in pixels of a picture, and its quality as Pillow counts it, 0..95.
_LONGEST, _QUALITY = 1600, 90
# Smaller sources are enlarged to this longest side, so that there is room for words.
_LEAST = 320
# A source more than so many times as wide as high stands above its map, and not beside it.
_WIDE = 3
# Pixels between the source and its map, and around words.
_GAP = 8
# At most this much of a picture is the bar with words.
_BAR = 180
_BACKGROUND, _WORDS = (24, 24, 24), (235, 235, 235)
# Of the verdict: told apart by brightness too.
_VERDICTS = {True: ("anomalous", (255, 120, 90)), False: ("normal", (120, 200, 255))}

# Words of a line, each with its colour.
Line = list[tuple[str, tuple[int, int, int]]]


def panel_size(width: int, height: int) -> tuple[int, int]:
    """Width and height at which a source of that size is shown: at its own aspect, twice in a picture."""
    across, down = (1, 2) if width > _WIDE * height else (2, 1)
    room_across, room_down = (_LONGEST - _GAP) / across, (_LONGEST - _BAR - _GAP) / down
    scale = min(room_across / width, room_down / height, max(1.0, _LEAST / max(width, height)))
    return max(1, int(width * scale)), max(1, int(height * scale))


def write_pictures(
    folder: Path, image: Good, prediction: Prediction, detector: Detector, wanted: Wanted, unlike: str
) -> None:
    """Write what is wanted of an image below a folder; folders above it are made.

    unlike: how its frame is unlike the normals', see `train.frames`.
    """
    heat, shown_map = Heat.of(detector.calibration), without_border(prediction.map, image.photo.size, detector.decoding)
    if wanted.draws(prediction.anomalous):
        assert image.photo.shown is not None
        picture = draw(image.photo.shown, shown_map, heat, prediction, unlike)
        picture.save(_made(folder / beside(OVERLAYS, image.file.overlay)), quality=_QUALITY)
    if wanted.maps:
        np.save(_made(folder / beside(MAPS, image.file.overlay)), prediction.map)
    if wanted.masks:
        mask = resized(shown_map, image.photo.size) > heat.threshold
        Image.fromarray(mask.astype(np.uint8) * 255).save(_made(folder / beside(MASKS, image.file.overlay)))


def without_border(anomaly_map: NDArray[np.float32], size: tuple[int, int], decoding: Decoding) -> NDArray[np.float32]:
    """Of a map the part that shows an image of that width and height, without what it was padded with."""
    width, height, left, top = place(*size, decoding)
    return anomaly_map[top : top + height, left : left + width]


def draw(
    source: Picture, anomaly_map: NDArray[np.float32], heat: Heat, prediction: Prediction, unlike: str = ""
) -> Image.Image:
    """A source (H,W,3) and beside it the same with its map, at any size, over it, below a bar with the verdict.

    A line is around what is above the map's threshold.
    """
    height, width = source.shape[:2]
    region = heat.region(anomaly_map, (width, height), flagged=prediction.anomalous)
    hot = outline(heat.over(source, anomaly_map), region, width=max(1, round((width * height) ** 0.5 / 260)))
    across, down = (0, height + _GAP) if width > _WIDE * height else (width + _GAP, 0)
    lines, font = _words(prediction, unlike, across + width)
    step = font.size * 1.4
    bar = int(step * len(lines)) + _GAP
    whole = max(across + width, int(max(map(_length(font), lines))) + 2 * _GAP)
    left = (whole - across - width) // 2
    picture = Image.new("RGB", (whole, bar + down + height), _BACKGROUND)
    picture.paste(Image.fromarray(source), (left, bar))
    picture.paste(Image.fromarray(hot), (left + across, bar + down))
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        at = float(_GAP)
        for text, colour in line:
            pen.text((at, _GAP / 2 + step * number), text, colour, font)
            at += font.getlength(text)
    return picture


def _words(prediction: Prediction, unlike: str, width: int) -> tuple[list[Line], ImageFont.FreeTypeFont]:
    """Verdict, score, threshold and p-value, and how the frame is unlike the normals', in lines for so many pixels."""
    font = _font(min(28, max(14, width // 40)))
    verdict, colour = _VERDICTS[prediction.anomalous]
    words = [f"score {prediction.score:.{DECIMALS}f}", f"threshold {prediction.threshold:.{DECIMALS}f}"]
    if prediction.p_value is not None:
        words.append(f"p-value {prediction.p_value:.{DECIMALS}f}")
    line = [(verdict, colour), ("    " + "    ".join(words), _WORDS)]
    lines = (
        [line] if _length(font)(line) + 2 * _GAP <= width else [[(verdict, colour)], *([(w, _WORDS)] for w in words)]
    )
    said = [f"unlike the normals: {unlike}"] if unlike else []
    if said and _length(font)([(said[0], _WORDS)]) + 2 * _GAP > width:
        said = ["unlike the normals:", *unlike.split(", ")]
    return [*lines, *([(part, _WORDS)] for part in said)], font


def _length(font: ImageFont.FreeTypeFont) -> Callable[[Line], float]:
    return lambda line: sum(font.getlength(text) for text, _ in line)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, so that a picture does not depend on the machine's."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
