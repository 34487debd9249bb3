"""Ground truth: a mask file, whatever its form, to True where the image is defective."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.images import Decoding, place
from pipeline.data.levels import deep_values, is_deep
from pipeline.data.pixels import (
    open_picture,
    refuse_cut_png,
    turn_of,
    unreadable,
    upright,
)
from pipeline.errors import ImageError, UserError

# A mask with at most so many values is one of labels: each value but the background is a defect. A mask with more, or
# one that a lossy format may have changed, has a soft border, and is cut at half its range.
_FEW = 8
_MORE = 32
# With up to `_MORE` values: the least distance of the lowest label from the background that noise does not have.
_CLEAR = 8
_LOSSY = frozenset({"JPEG", "JPEG2000", "MPO"})

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
    the size of the image as stored, and not as it stands upright, is turned as the image is. Each pixel of the result
    is True if any pixel of the mask that it stands for is a defect, so that no small defect is lost; the border of
    "pad" is False.

    Raises what `decode_rgb` raises, and MaskMismatch for a mask with neither the sides of its image nor their ratio.
    """
    defect, size = read_mask(data, decoding.most_pixels, name), stance.upright
    found = defect.shape[::-1]
    if stance.turn is not None and found == stance.stored != size:
        defect = np.asarray(upright(Image.fromarray(defect), stance.turn))
    elif abs(found[0] * size[1] / (found[1] * size[0]) - 1) > _SAME_ASPECT:
        raise MaskMismatch(f"{name}: a mask of {found[0]} x {found[1]} pixels, and its image has {size[0]} x {size[1]}")
    wide, high, left, top = place(*size, decoding)
    mask = np.zeros((decoding.size, decoding.size), np.bool_)
    mask[top : top + high, left : left + wide] = shrink(defect, high, wide)
    return mask


def read_mask(data: bytes, most_pixels: int, name: str) -> NDArray[np.bool_]:
    """(H,W) bool: where a mask file, upright by its own EXIF orientation, marks a defect; by the rules of `is_defect`.

    A pixel's colour is its value, composited over black where it is transparent. Raises what `decode_rgb` raises.
    """
    image = open_picture(data, name, most_pixels)
    try:
        with image:
            refuse_cut_png(image, data)
            image.load()
            turn = turn_of(image)
            lossy = image.format in _LOSSY
            defect = is_defect(deep_values(image) if is_deep(image) else _colours(image), lossy=lossy)
            return np.asarray(upright(Image.fromarray(defect), turn))
    except UserError:
        raise
    except Exception as error:
        raise unreadable(error, data, name) from error


def is_defect(values: NDArray[np.float32], *, lossy: bool) -> NDArray[np.bool_]:
    """(H,W) bool of a mask's values (H,W) or colours (H,W,3): which are defects.

    A mask of one value is empty where that is 0, and defective all over otherwise. Where it has few values they are
    labels, and each but the background is a defect; the background is 0, or the most frequent value where none is 0.
    Otherwise the brightest channel is cut at half its range; without a range it is as a mask of one value.
    lossy: the file's format may have changed values, so that few values are no labels.
    ValueError for values that are not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    # A colour is one number.
    labels = values if values.ndim == 2 else values.astype(np.int64) @ np.array([65536, 256, 1])
    levels, counts = np.unique(labels, return_counts=True)
    if len(levels) == 1:
        return np.full(labels.shape, levels[0] != 0)
    background = 0 if 0 in levels else levels[counts.argmax()]
    nearest = np.abs(levels[levels != background] - background).min()
    numbers = levels[-1] < _MORE and bool((levels == np.rint(levels)).all())
    if not lossy and (len(levels) <= _FEW or numbers or (len(levels) <= _MORE and nearest >= _CLEAR)):
        return np.asarray(labels != background)
    grey = values if values.ndim == 2 else values.max(2)
    low, high = float(grey.min()), float(grey.max())
    # A grey level of 8 bits, in the scale of the mask.
    level = 1 / 255 if high <= 1 else max(1.0, high / 255)
    if high - low < _MORE * level:
        return np.full(grey.shape, low > 127 * level)
    return np.asarray(grey > (low + high) / 2)


def _colours(image: Image.Image) -> NDArray[np.float32]:
    """(H,W) of grey, (H,W,3) of colour, composited over black."""
    if image.has_transparency_data:
        image = image.convert("RGBA").convert("RGBa")
    colours = np.asarray(image if image.mode == "RGBa" else image.convert("RGB"))[..., :3].astype(np.float32)
    grey = (colours[..., :1] == colours).all()
    return colours[..., 0] if grey else colours


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
