"""Image files to RGB uint8 of one size.

`pipeline.data.pixels` has the rules by which a file becomes a picture. Here grey is repeated in three channels, and the
picture is resized to a square by a bilinear filter that averages when it shrinks (antialiased). "stretch" changes the
ratio of the sides; "pad" keeps it, centres the image and repeats its outermost pixels: a constant border would be an
edge as strong as any in the image, and saliency would rest on it. An image in memory, RGB already, is only resized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.content import read_file
from pipeline.data.levels import Levels
from pipeline.data.pixels import MOST_PIXELS, decode, decode_sized
from pipeline.errors import ImageError, UserError
from pipeline.settings import RESIZES


@dataclass(frozen=True)
class Decoding:
    """How the files of a category become pixels.

    size: side of the square; resize: one of `RESIZES`; levels: the category's, None in caches of earlier versions.
    most_pixels: larger images are refused.
    """

    size: int
    resize: str
    levels: Levels | None
    most_pixels: int = MOST_PIXELS


@dataclass(frozen=True, eq=False)
class Photo:
    """An image file, to score and to show.

    pixels: (size,size,3) uint8, as `decode_rgb` gives them. shown: (h,w,3) uint8, None where it is not to be shown.
    size: width and height of the file's picture as it stands upright.
    """

    pixels: NDArray[np.uint8]
    shown: NDArray[np.uint8] | None
    size: tuple[int, int]


def full_name(image_root: str, path: str) -> str:
    """What messages call the file at `path` below `image_root`: a path or URL that leads to it."""
    return f"{image_root.rstrip('/')}/{path}"


def read_bytes(image_root: str, path: str) -> bytes:
    """Content of the image file at `path` (relative, POSIX) below `image_root` (local folder or fsspec URL).

    Raises `ImageError` naming the file where it is missing or cannot be read.
    """
    try:
        return read_file(image_root, path)
    except FileNotFoundError:
        raise ImageError(f"{full_name(image_root, path)}: no such file; check the path or the copy") from None
    except OSError as error:
        raise ImageError(f"{full_name(image_root, path)}: cannot be read ({error.strerror or error})") from error


def decode_rgb(data: bytes, decoding: Decoding, name: str) -> NDArray[np.uint8]:
    """Decode an image file to RGB, shape (size, size, 3), uint8, by the rules at the top of `pipeline.data.pixels`.

    `data` is the content of the file, `name` what messages call it.

    Raises `ImageError` for a file that is empty, corrupt, truncated, no image, of values outside the category's scale,
    or of too many pixels; `UserError` for an unknown `resize`.
    """
    image = decode(data, name, decoding.levels, decoding.most_pixels, draft=2 * decoding.size)
    return _square(image, decoding)


def read_photo(path: Path, decoding: Decoding, shown_at: Callable[[int, int], tuple[int, int]] | None) -> Photo:
    """Read a local image file; shown_at: the size at which one of a size is shown, None: it is not shown.

    Raises what `read_rgb` does.
    """
    data = read_bytes(str(path.parent), path.name)
    image, size = decode_sized(data, str(path), decoding.levels, decoding.most_pixels, draft=2 * decoding.size)
    shown = None if shown_at is None else _resized(image, *shown_at(*size))
    return Photo(_square(image, decoding), shown, size)


def resize_rgb(pixels: NDArray[np.uint8], decoding: Decoding, name: str) -> NDArray[np.uint8]:
    """Resize an RGB image (H,W,3) uint8 just as `decode_rgb` would that of a lossless file of these pixels.

    Raises `ValueError`, beginning with `name`, for an array of another shape or dtype; `UserError` as there.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"{name} is {pixels.shape} {pixels.dtype}: give an RGB image (H,W,3) of uint8")
    return _square(Image.fromarray(pixels), decoding)


def read_rgb(path: Path, decoding: Decoding) -> NDArray[np.uint8]:
    """Read a local image file and decode it as `decode_rgb` does; raises what that does, `ImageError` if not there."""
    return decode_rgb(read_bytes(str(path.parent), path.name), decoding, str(path))


def place(width: int, height: int, decoding: Decoding) -> tuple[int, int, int, int]:
    """Width, height, left and top, in pixels, of an image within the square."""
    size = decoding.size
    if decoding.resize == "stretch":
        return size, size, 0, 0
    if decoding.resize != "pad":
        raise UserError(f"unknown resize {decoding.resize!r}; choose one of {', '.join(RESIZES)}")
    scale = size / max(width, height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    return wide, high, (size - wide) // 2, (size - high) // 2


def _square(image: Image.Image, decoding: Decoding) -> NDArray[np.uint8]:
    width, height, left, top = place(image.width, image.height, decoding)
    border = ((top, decoding.size - height - top), (left, decoding.size - width - left), (0, 0))
    return np.pad(_resized(image, width, height), border, mode="edge")


def _resized(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    # Grey is resized as one channel: a third of the work, and the same values.
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels).clip(0, 255).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] == 2:
        pixels = np.repeat(pixels.reshape(height, width, -1)[..., :1], 3, axis=2)
    return pixels[..., :3]
