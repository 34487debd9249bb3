"""The only place that opens an image file: what Pillow decodes becomes RGB uint8 of one size, or a mask.

Rules, in this order:

1. The first frame of an animated or multi-page file.
2. EXIF orientation is applied, so that the image stands as every viewer shows it.
3. Transparent pixels are composited over black, which is what most programs store below full transparency.
4. 16-bit grey (Pillow's modes I;16 and I) is divided by 257, so that 65535 becomes 255: nothing is clipped,
   and nothing is stretched image by image, which would hide that one part is darker than another. 16-bit
   colour is cut to its high byte by Pillow itself. 32-bit integers outside 0..65535 are refused.
5. Floating point (mode F) is taken as 0..1 where no value exceeds 1, else as 0..255; the rest is refused.
6. Palette, CMYK, YCbCr and others become RGB by Pillow's conversion; grey is repeated in three channels.
7. The image is resized to a square by a bilinear filter that averages when it shrinks (antialiased).
   "stretch" changes the ratio of the sides; "pad" keeps it, centres the image and repeats its outermost
   pixels: a constant border would be an edge as strong as any in the image, and saliency would rest on it.

An image in memory, RGB already, takes only rule 7. A mask takes the same way as a file but for a nearest-neighbour
filter and a border of zeros.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.data.listing import read_file
from pipeline.errors import ImageError, UserError, one_line
from pipeline.settings import RESIZES

# EXIF 2.32, tag 0x0112: how the stored rows and columns have to be turned to stand upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Masks as VisA publishes them hold the number of the defect class, 1 to 9, in place of 255.
_CLASS_NUMBERS = 32


def read_bytes(image_root: str, path: str) -> bytes:
    """Content of the image file at `path` (relative, POSIX) below `image_root` (local folder or fsspec URL).

    Raises `ImageError` naming the file where it is missing or cannot be read.
    """
    try:
        return read_file(image_root, path)
    except FileNotFoundError:
        raise ImageError(f"{image_root.rstrip('/')}/{path}: no such file; check the path or the copy") from None
    except OSError as error:
        raise ImageError(f"{image_root.rstrip('/')}/{path}: cannot be read ({error.strerror or error})") from error


def decode_rgb(data: bytes, size: int, resize: str, name: str) -> NDArray[np.uint8]:
    """Decode an image file to RGB, shape (size, size, 3), uint8, by the rules at the top of this module.

    `data` is the content of the file, `size` in pixels, `resize` one of `RESIZES`, `name` what messages call
    it.

    Raises `ImageError` for a file that is empty, corrupt, truncated, no image, of values that have no agreed
    scale, or of more pixels than Pillow takes for safe; `UserError` for an unknown `resize`.
    """
    return _square(_decode(data, name, draft=2 * size), size, resize)


def resize_rgb(pixels: NDArray[np.uint8], size: int, resize: str, name: str) -> NDArray[np.uint8]:
    """Resize an RGB image (H,W,3) uint8 just as `decode_rgb` would that of a lossless file of these pixels.

    Raises `ValueError`, beginning with `name`, for an array of another shape or dtype; `UserError` as there.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"{name} is {pixels.shape} {pixels.dtype}: give an RGB image (H,W,3) of uint8")
    return _square(Image.fromarray(pixels), size, resize)


def read_rgb(path: Path, size: int, resize: str) -> NDArray[np.uint8]:
    """Read a local image file and decode it as `decode_rgb` does; raises what that does, `ImageError` if not there."""
    return decode_rgb(read_bytes(str(path.parent), path.name), size, resize, str(path))


def _square(image: Image.Image, size: int, resize: str) -> NDArray[np.uint8]:
    width, height, left, top = _fit(image.width, image.height, size, resize)
    # Grey is resized as one channel: a third of the work, and the same values.
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels).clip(0, 255).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] == 2:
        pixels = np.repeat(pixels.reshape(height, width, -1)[..., :1], 3, axis=2)
    border = ((top, size - height - top), (left, size - width - left), (0, 0))
    return np.pad(pixels[..., :3], border, mode="edge")


def decode_mask(data: bytes, size: int, resize: str, name: str) -> NDArray[np.bool_]:
    """Decode a ground-truth mask, shape (size, size), bool; True is defect.

    A pixel is defect where its brightest channel exceeds 127, after transparency and 16 bits are treated as
    in `decode_rgb`. Where no pixel of the whole mask reaches 32 it holds class numbers (VisA as published),
    and every pixel above 0 is defect. Then the geometry of `decode_rgb`, by nearest neighbour; the border of
    "pad" is False.

    Raises what `decode_rgb` raises.
    """
    image = _decode(data, name, draft=None)
    values = np.asarray(image)
    if values.ndim == 3:
        values = values[..., :3].max(2) if values.shape[2] > 2 else values[..., 0]
    defect = values > (0 if values.max() < _CLASS_NUMBERS else 127)
    width, height, left, top = _fit(image.width, image.height, size, resize)
    whole = Image.fromarray(defect.astype(np.uint8))
    mask = np.zeros((size, size), np.bool_)
    small = np.asarray(whole.resize((width, height), Image.Resampling.NEAREST))
    mask[top : top + height, left : left + width] = small > 0
    return mask


def _decode(data: bytes, name: str, draft: int | None) -> Image.Image:
    """Upright image of mode L, La, RGB, RGBa (alpha already multiplied in) or F, all with values 0..255.

    `draft` lets a JPEG decoder leave out detail as long as both sides keep that many pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "PNG" and not 0 <= data.rfind(b"IEND") <= len(data) - 8:
                # Pillow accepts a PNG that was cut behind its last row, before the checksums.
                raise OSError("image file is truncated")
            if draft is not None:
                # At twice the final size this halves the time; after the resize to 256 px 99 % of the pixels
                # differ from a full decode by 2 levels or less, all by 5 (six real textures, quality 92).
                image.draft(image.mode, (draft, draft))
            image.load()
            return _plain(_upright(image), name)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too large to be decoded safely ({error}); shrink it first") from error
    except Exception as error:
        # Pillow's decoders let nearly every kind of exception out on a corrupt file.
        reason = one_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "empty file" if not data else "no image format that Pillow knows"
        raise ImageError(f"{name}: cannot be read as an image ({reason}); replace or remove it") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Broken EXIF says nothing about orientation, and the pixels are whole.
        turn = None
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _in_range(np.asarray(image).astype(np.float32) / np.float32(257), name, "0..65535")
    if image.mode == "F":
        values = np.asarray(image)
        return _in_range(values * 255 if values.max() <= 1 else values, name, "0..1 or 0..255")
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        straight = image if image.mode in ("La", "RGBa") else image.convert("LA" if grey else "RGBA")
        return straight.convert("La" if grey else "RGBa")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _in_range(values: NDArray[np.float32], name: str, scale: str) -> Image.Image:
    # Written so that NaN fails it too.
    if not (values.min() >= 0 and values.max() <= 255):
        raise ImageError(f"{name}: values outside {scale}; convert the file to 8 or 16 bits")
    return Image.fromarray(values)


def _fit(width: int, height: int, size: int, resize: str) -> tuple[int, int, int, int]:
    """Width, height, left and top, in pixels, of an image within the square of side `size`."""
    if resize == "stretch":
        return size, size, 0, 0
    if resize != "pad":
        raise UserError(f"unknown resize {resize!r}; choose one of {', '.join(RESIZES)}")
    scale = size / max(width, height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    return wide, high, (size - wide) // 2, (size - high) // 2
