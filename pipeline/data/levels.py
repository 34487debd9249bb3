"""What is white in images of more than 8 bits, and how their values become 0..255."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, PLANAR_CONFIGURATION, SAMPLEFORMAT

from pipeline.data.fits import unread_fits
from pipeline.errors import ImageError

# An image with more than this share of pixels above so many times white, or so many below 0, has another scale than its
# category.
_CLIPPED_SHARE, _FAR_ABOVE, _FAR_BELOW = 0.01, 1.5, 0.1
# The share of an image's pixels, the brightest, that do not count: they may be stuck. In small images it is the least
# of a few pixels and of one in a hundred.
_STUCK, _FEW_STUCK, _MOST_STUCK = 1e-4, 3, 0.01


@dataclass(frozen=True)
class Levels:
    """What is white in the images of a category that have more than 8 bits: the value that becomes 255.

    integer: of 16-bit and 32-bit integers; real: of floating point. None where no normal that was looked at has such
    values: an image that does tells its own white, see `_white`. rules: 1 in caches and detectors written before it
    was kept: there, signed bytes are read as unsigned, a profile is sRGB by its name, and one transparent colour counts
    only in plain images of 8 bits.
    """

    integer: int | None = 65535
    real: float | None = 1.0
    rules: int = 2

    @classmethod
    def from_attributes(cls, stored: Mapping[str, Any]) -> Levels:
        """What `to_attributes` gave, now or in an earlier version."""
        return cls(**{"rules": 1, **stored})

    def to_attributes(self) -> dict[str, Any]:
        """As a cache or a detector stores it."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("rules", 1)}


# What cameras give: the levels that a category's may be.
INTEGERS = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 15, 16))
REALS = (1.0, *map(float, INTEGERS))


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def is_deep_colour(image: Image.Image) -> bool:
    """Whether an opened image has colours of 16 bits per channel, of which Pillow gives the high byte."""
    return image.mode in ("RGB", "RGBA") and ";16" in _raw_mode(image)


def stored_values(image: Image.Image) -> NDArray[np.uint16] | NDArray[np.int32] | NDArray[np.float32]:
    """(H,W): the values of an image of one channel of more than 8 bits, as they are stored."""
    values = np.asarray(image)
    # Of FITS, Pillow takes the sign of 16 bits for a part of the value.
    return values.view(np.int16).astype(np.int32) if image.format == "FITS" and values.dtype.itemsize == 2 else values


def deep_values(image: Image.Image, *, over_black: bool = True) -> NDArray[np.float32]:
    """(H,W) float32: the same, and 0 where they are the one that the image calls transparent, with `over_black`."""
    values = stored_values(image).astype(np.float32)
    if over_black and "transparency" in image.info:
        values[values == image.info["transparency"]] = 0
    return values


def deep_colour_values(data: bytes, image: Image.Image, *, over_black: bool = True) -> NDArray[np.float32]:
    """(H,W,3 or 4) float32: the values of a colour image of 16 bits per channel, as they are stored.

    over_black: those of the one colour that the image calls transparent become 0.
    Pillow gives only the high byte of such a value. Read in the other byte order, that is the low byte.
    """
    raw = _raw_mode(image)
    if raw.startswith("LA"):
        # Four bytes per pixel, which may as well be those of four channels: grey high and low, opacity high and low.
        parts = _in_order(data, "RGBA")
        grey, opacity = (parts[..., i] * np.float32(256) + parts[..., i + 1] for i in (0, 2))
        return np.stack([grey, grey, grey, opacity], axis=2)
    little = raw[-1] == "L" or (raw[-1] == "N" and sys.byteorder == "little")
    high, low = (_in_order(data, raw[:-1] + order) for order in ("LB" if little else "BL"))
    values = high * np.float32(256) + low
    if over_black and "transparency" in image.info:
        values[(values == np.array(image.info["transparency"], np.float32)).all(axis=2)] = 0
    return values


def brightest(values: NDArray[np.float32]) -> float:
    """The largest of an image's finite values, but for pixels that may be stuck; 0 where none is finite."""
    finite = np.sort(values[np.isfinite(values)].ravel())
    stuck = max(int(_STUCK * len(finite)), min(_FEW_STUCK, int(_MOST_STUCK * len(finite))))
    return float(finite[-1 - stuck]) if len(finite) else 0.0


def scale(stored: NDArray[np.float32], image: Image.Image, levels: Levels | None, name: str) -> NDArray[np.float32]:
    """(H,W) float32, 0..255, of the stored values (H,W) of an image of one channel of more than 8 bits.

    levels: None, as in earlier versions: 65535 is white, and for floating point 1 where no value exceeds it, else 255.
    Raises ImageError, beginning with `name`, for values that are outside the scale, or most of which are.
    """
    real = image.mode == "F"
    least, most = float(stored.min()), float(stored.max())
    if not real or levels is None:
        white = 65535.0 if not real else 1.0 if most <= 1 else 255.0
        # Written so that NaN fails it too.
        if not (least >= 0 and most <= white):
            allowed = "0..1 or 0..255" if real else "0..65535"
            raise ImageError(f"{name}: values outside {allowed}; convert the file to 8 or 16 bits")
        if levels is None:
            return stored * np.float32(255 / white)
    if not np.isfinite(stored).all():
        raise ImageError(f"{name}: holds values that are not finite; write it again without them")
    white = _white(levels.real, 1.0, stored, name) if real else _white(levels.integer, 65535.0, stored, name)
    _refuse_far_above(stored, white, name)
    if np.mean(stored < -_FAR_BELOW * white) > _CLIPPED_SHARE:
        raise ImageError(f"{name}: values down to {least:g}, while 0 is black; bring it to 0 to {white:g}")
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(PHOTOMETRIC_INTERPRETATION) == 0:
        stored = np.float32(white) - stored
    return (stored * np.float32(255 / white)).clip(0, 255)


def deep_colour(data: bytes, image: Image.Image, levels: Levels | None, name: str) -> Image.Image | None:
    """RGB or RGBA of 8 bits of a colour image of 16 bits per channel whose high bytes do not say it; None for others.

    These are images whose white is not 65535, or that call one colour transparent.

    Raises ImageError, beginning with `name`, where its values are outside the scale.
    """
    if levels is None or not is_deep_colour(image):
        return None
    over_black = levels.rules > 1
    if levels.integer == 65535 and not (over_black and "transparency" in image.info):
        return None
    values = deep_colour_values(data, image, over_black=over_black)
    white = _white(levels.integer, 65535.0, values[..., :3], name)
    _refuse_far_above(values[..., :3], white, name)
    scaled = (values * np.float32(255 / white)).round().clip(0, 255)
    if scaled.shape[2] == 4:
        # Opacity has the whole scale, or that of the camera.
        opaque = 65535 if values[..., 3].max() > white else white
        scaled[..., 3] = (values[..., 3] * np.float32(255 / opaque)).round()
    return Image.fromarray(scaled.astype(np.uint8))


def refuse_signed_bytes(image: Image.Image, name: str) -> None:
    """Raise ImageError, beginning with `name`, for an opened TIFF of signed 8-bit integers: Pillow takes no sign.

    A mask may be one: its background is 0 in either reading.
    """
    if image.format == "TIFF" and image.mode == "L" and getattr(image, "tag_v2", {}).get(SAMPLEFORMAT, (1,))[0] == 2:
        raise ImageError(
            f"{name}: a TIFF of signed 8-bit integers, which Pillow reads as unsigned; save it as unsigned"
        )


def unread_depth(image: Image.Image, data: bytes) -> str:
    """What an opened image has that Pillow would read wrongly or only in part, "" where there is nothing of it."""
    if image.format == "FITS":
        return unread_fits(image, data)
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        planar = tags.get(PLANAR_CONFIGURATION) == 2 and max(tags.get(BITSPERSAMPLE, (8,))) > 8
        return "a TIFF of 16 bits in separate planes" if planar and image.mode in ("RGB", "RGBA") else ""
    if image.mode in ("RGB", "RGBA", "L", "LA") and _bits(image.format, data) > 8:
        return f"a {image.format} of more than 8 bits per channel"
    return ""


def _bits(form: str | None, data: bytes) -> int:
    """Bits per channel as the headers of formats say that Pillow brings to 8 bits, 8 for all others."""
    if form == "JPEG2000":  # ISO/IEC 15444-1, A.5.1: the marker SIZ, and 38 bytes behind its length the first depth
        start = data.find(b"\xff\x4f\xff\x51")
        return (data[start + 42] & 0x7F) + 1 if 0 <= start < len(data) - 42 else 8
    if form == "SGI":
        return 8 * data[3]
    if form == "PPM" and data[:2] in (b"P6", b"P3"):
        words = re.sub(rb"#[^\n]*\n", b" ", data[:1000]).split(maxsplit=4)
        return 16 if len(words) > 3 and words[3].isdigit() and int(words[3]) > 255 else 8
    return 8


def _white(found: float | None, whole: float, values: NDArray[np.float32], name: str) -> float:
    """White of a category; where its normals do not tell, `whole`, of which an image then has to use more than half."""
    if found is not None:
        return float(found)
    if (most := brightest(values)) <= whole / 2:
        raise ImageError(
            f"{name}: values up to {most:g} of {whole:g}, and no normal of its category has this depth to tell what is "
            "white: bring it to the depth of the normals"
        )
    return whole


def _refuse_far_above(values: NDArray[np.float32], white: float, name: str) -> None:
    if np.mean(values > _FAR_ABOVE * white) > _CLIPPED_SHARE:
        raise ImageError(
            f"{name}: values up to {values.max():g}, while {white:g} is white in its category: bring it to that scale"
        )


def _in_order(data: bytes, raw_mode: str) -> NDArray[np.float32]:
    with Image.open(io.BytesIO(data)) as image:
        opened: Any = image
        opened.tile = [
            tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
            for tile in opened.tile
        ]
        return np.asarray(image).astype(np.float32)


def _raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None)
    args = tiles[0].args if tiles else ""
    return str(args if isinstance(args, str) else (args or ("",))[0])
