"""Ground truth: a mask file, whatever its form, to True where the image is defective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION

from pipeline.data.images import Decoding, place
from pipeline.data.levels import deep_colour_values, is_deep, is_deep_colour, stored_values
from pipeline.data.pixels import (
    open_picture,
    refuse_cut_png,
    turn_of,
    unreadable,
    upright,
)
from pipeline.errors import ImageError, UserError

# A mask with at most so many values is one of labels: each value but the background is a defect. So is a mask of more
# values most of whose pixels, of those between the extremes, lie in an area of their value: a soft border has none.
# Others, and those of a format that may have changed values, are cut at half their range; a lesser range is noise.
_FEW = 8
_LEAST_RANGE = 32
_LOSSY = frozenset({"JPEG", "JPEG2000", "MPO", "AVIF"})
# Bits per channel in the numbers of colours, by their type.
_BITS = {np.dtype(np.uint32): 8, np.dtype(np.uint64): 16}
# Pixels that are counted or compared at once.
_BLOCK = 2**22

# Sides whose ratio differs by less are the same picture at another size.
_SAME_ASPECT = 0.02


class MaskMismatch(ImageError):
    """A mask that has neither the sides of its image nor their ratio."""


@dataclass(frozen=True)
class Stance:
    """How an image is stored: its width and height in the file, and how it is turned to stand upright."""

    stored: tuple[int, int]
    turn: Image.Transpose | None

    @classmethod
    def of(cls, data: bytes, most_pixels: int, name: str) -> Stance:
        """The stance of an image file; of its pixels nothing is decoded. Raises what `decode_rgb` raises."""
        with open_picture(data, name, most_pixels) as image:
            stance = cls(image.size, turn_of(image))
            # Of a TIFF, Pillow gives the sides after its turn, and turns it when it loads.
            return cls(stance.upright, stance.turn) if image.format == "TIFF" else stance

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the image as it stands."""
        turned = self.turn is not None and Image.new("1", (1, 2)).transpose(self.turn).size == (2, 1)
        return self.stored[::-1] if turned else self.stored


def decode_mask(data: bytes, stance: Stance, decoding: Decoding, name: str) -> NDArray[np.bool_]:
    """Decode a ground-truth mask, shape (size, size), bool; True is defect.

    data: the content of its file; stance: of its image. A mask stands as its own EXIF orientation says; one that has
    none, and the size of the image as stored, is turned as the image is. Each pixel of the result is True if any pixel
    of the mask that it stands for is a defect, so that no small defect is lost; the border of "pad" is False.

    Raises what `decode_rgb` raises, and MaskMismatch for a mask with neither the sides of its image nor their ratio.
    """
    defect, size = read_mask(data, decoding.most_pixels, name), stance.upright
    found = defect.shape[::-1]
    as_stored = stance.turn is not None and found == stance.stored
    if as_stored and Stance.of(data, decoding.most_pixels, name).turn is None:
        defect = np.asarray(upright(Image.fromarray(defect), stance.turn))
    elif not _is_alike(found, size):
        raise MaskMismatch(f"{name}: a mask of {found[0]} x {found[1]} pixels, and its image has {size[0]} x {size[1]}")
    wide, high, left, top = place(*size, decoding)
    mask = np.zeros((decoding.size, decoding.size), np.bool_)
    mask[top : top + high, left : left + wide] = shrink(defect, high, wide)
    return mask


def may_stand_otherwise(data: bytes, stance: Stance, most_pixels: int, name: str) -> bool:
    """Whether neither the orientation nor the size of a mask says if it is turned as its image; of that is the stance.

    Raises what `decode_mask` raises, but for MaskMismatch.
    """
    if stance.turn is None:
        return False
    mask, both = Stance.of(data, most_pixels, name), (stance.stored, stance.upright)
    if mask.turn is not None:
        return False
    return both[0] == both[1] if mask.stored in both else all(_is_alike(mask.stored, sides) for sides in both)


def _is_alike(sides: tuple[int, ...], others: tuple[int, ...]) -> bool:
    """Whether two pictures have the same ratio of width and height."""
    return abs(sides[0] * others[1] / (sides[1] * others[0]) - 1) <= _SAME_ASPECT


def read_mask(data: bytes, most_pixels: int, name: str) -> NDArray[np.bool_]:
    """(H,W) bool: where a mask file, upright by its own EXIF orientation, marks a defect; by the rules of `is_defect`.

    A pixel's colour is its value, composited over black where it is transparent. Raises what `decode_rgb` raises.
    """
    image = open_picture(data, name, most_pixels)
    try:
        with image:
            refuse_cut_png(image, data)
            deep_colour = deep_colour_values(data, image) if is_deep_colour(image) else None
            image.load()
            turn = turn_of(image)
            if deep_colour is not None:
                values = _numbers(deep_colour)
            else:
                values = _deep_grey(image) if is_deep(image) else _colours(image)
            defect = is_defect(values, lossy=_is_lossy(image, data))
            return np.asarray(upright(Image.fromarray(defect), turn))
    except UserError:
        raise
    except Exception as error:
        raise unreadable(error, data, name) from error


def is_defect(values: NDArray[Any], *, lossy: bool) -> NDArray[np.bool_]:
    """(H,W) bool of a mask's values (H,W), integers or floating point: which are defects.

    A mask of one value is empty where that is 0, and defective all over otherwise. A mask of labels (see the constants)
    has defects wherever its value is not the background, which is 0, or the most frequent value where none is 0.
    Colours are numbers of 24 bits (uint32) or 48 (uint64); in a mask that has none of labels, the brightest channel
    counts.
    lossy: the file's format may have changed values, so that few values are no labels.
    ValueError for values that are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    levels, counts = _levels(values)
    if len(levels) == 1:
        return np.full(values.shape, levels[0] != 0)
    background = 0 if 0 in levels else levels[counts.argmax()]
    if not lossy and (len(levels) <= _FEW or _are_areas(values, levels)):
        return np.asarray(values != background)
    bits = _BITS.get(values.dtype)
    grey = np.max([values >> i * bits & 2**bits - 1 for i in range(3)], axis=0) if bits else values
    low, high = float(grey.min()), float(grey.max())
    # A grey level of 8 bits, in the scale of the mask.
    level = max(1.0, high / 255) if values.dtype.kind in "iu" or high > 1 else 1 / 255
    if high - low < _LEAST_RANGE * level:
        return np.full(grey.shape, low > 127 * level)
    return np.asarray(grey > (low + high) / 2)


def _levels(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values of a mask, rising, and how often each is there."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() >= 2**24:
        return np.unique(values, return_counts=True)
    # A sort of a large mask would take half a minute and gigabytes.
    counts = np.zeros(int(values.max()) + 1, np.int64)
    flat = values.ravel()
    for start in range(0, flat.size, _BLOCK):
        counts += np.bincount(flat[start : start + _BLOCK], minlength=len(counts))
    levels = np.flatnonzero(counts)
    return levels, counts[levels]


def _are_areas(values: NDArray[Any], levels: NDArray[Any]) -> bool:
    """Whether most pixels between the lowest and the highest value have that of a neighbour in their row and column."""
    between = inside = 0
    rows = max(3, _BLOCK // values.shape[1])
    for start in range(0, len(values), rows):
        part = values[max(0, start - 1) : start + rows + 1]
        centre = part[1:-1, 1:-1]
        middle = (centre != levels[0]) & (centre != levels[-1])
        same = (centre == part[:-2, 1:-1]) | (centre == part[2:, 1:-1])
        same &= (centre == part[1:-1, :-2]) | (centre == part[1:-1, 2:])
        between += int(middle.sum())
        inside += int((middle & same).sum())
    return inside > between / 2


def _colours(image: Image.Image) -> NDArray[np.uint8] | NDArray[np.uint32]:
    """(H,W): of grey its values, of colour numbers of 24 bits; composited over black."""
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if image.has_transparency_data:
        image = image.convert("RGBA").convert("RGBa")
    colours = np.asarray(image if image.mode == "RGBa" else image.convert("RGB"))
    red, green, blue = (colours[..., i] for i in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return np.ascontiguousarray(red)
    whole: NDArray[np.uint32] = red.astype(np.uint32) << 16 | green.astype(np.uint32) << 8 | blue
    return whole


def _deep_grey(image: Image.Image) -> NDArray[Any]:
    """(H,W): the values of one channel of more than 8 bits, where 0 is black and what is transparent."""
    values: NDArray[Any] = stored_values(image)
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(PHOTOMETRIC_INTERPRETATION) == 0:
        whites = (65535,) if values.dtype.kind in "iu" else (1, 255, 65535)
        values = next((white for white in whites if not values.max() > white), values.max()) - values
    hidden = image.info.get("transparency")
    return values if hidden is None else np.where(values == hidden, 0, values).astype(values.dtype)


def _numbers(channels: NDArray[np.float32]) -> NDArray[Any]:
    """(H,W): the values of grey, or numbers of 48 bits, of colours of 16 bits per channel, composited over black.

    channels: (H,W,3 or 4), the fourth is opacity.
    """
    whole = channels.astype(np.uint64)
    colours = whole[..., :3]
    if whole.shape[2] == 4:
        colours = (colours * whole[..., 3:] + 32767) // 65535
    red, green, blue = (colours[..., i] for i in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red.astype(np.uint16)
    return np.asarray(red << 32 | green << 16 | blue)


def _is_lossy(image: Image.Image, data: bytes) -> bool:
    if image.format == "WEBP":
        return b"VP8L" not in data[:4096]
    return image.format in _LOSSY or (image.format == "TIFF" and image.info.get("compression") in ("jpeg", "webp"))


def shrink(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """(height,width) bool of a mask (H,W): True where any of the pixels that a pixel stands for is; also to enlarge."""
    return _shrink_rows(_shrink_rows(mask, height).T, width).T


def _shrink_rows(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    edges = np.arange(count + 1) * len(mask)
    # Rows of which a new one has any part.
    starts, ends = edges[:-1] // count, -(-edges[1:] // count)
    # A row more, so that the last end is an index; between an end and the next start nothing is wanted.
    padded = np.concatenate([mask, np.zeros_like(mask[:1])])
    found = np.logical_or.reduceat(padded, np.stack([starts, ends], 1).ravel(), axis=0)
    return np.asarray(found[::2])
