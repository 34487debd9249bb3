"""From the content of an image file to an upright picture in memory; the only place that lets Pillow decode one.

Rules, in this order:

1. The first frame of an animated or multi-page file.
2. EXIF orientation is applied, so that the image stands as every viewer shows it.
3. Values of more than 8 bits are scaled by the `Levels` of the category: white becomes 255, and what lies above it is
   clipped. A TIFF whose white is 0 is turned over first. An image that would be clipped nearly whole is refused.
4. An embedded colour profile is turned into sRGB, and LAB as well.
5. Transparent pixels are composited over black, which is what most programs store below full transparency.
6. Palette, CMYK, YCbCr and others become RGB by Pillow's conversion.

Without `Levels`, as in caches of earlier versions, 65535 is white in integers; floating point is 0..1 where no value
exceeds 1, else 0..255; colour profiles are ignored. `Levels.rules` has what else earlier versions did.
"""

from __future__ import annotations

import io

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from pipeline.data.colour import other_than_srgb, to_srgb, with_opacity
from pipeline.data.levels import Levels, deep_colour, deep_values, is_deep, refuse_signed_bytes, scale, unread_depth
from pipeline.data.listing import NOT_DECODED
from pipeline.data.tiff import describe_tiff
from pipeline.errors import ImageError, UserError, one_line

# Each image is held against its own limit, `most_pixels`, and Pillow has one for the whole process.
Image.MAX_IMAGE_PIXELS = None
# Pillow gives up at 1 MiB of text in one chunk of a PNG, which cameras and editors exceed. The sum stays limited.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# As many as Pillow takes for safe.
MOST_PIXELS = 178_956_970

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


_ON_ITS_SIDE = tuple(_UPRIGHT[tag] for tag in (5, 6, 7, 8))


def open_picture(data: bytes, name: str, most_pixels: int) -> Image.Image:
    """An image file whose header is read and nothing else.

    Raises ImageError, beginning with `name`, for a file that is no image or too large.
    """
    try:
        image = Image.open(io.BytesIO(data))
        odd = unread_depth(image, data)  # damaged headers may let any exception out here, too
    except Exception as error:
        raise unreadable(error, data, name) from error
    if image.format in NOT_DECODED:  # known by its content, whatever its name
        raise ImageError(f"{name}: {image.format} is not read; convert it to PNG")
    if odd:
        raise ImageError(f"{name}: {odd}, which Pillow reads wrongly or in part; save it as PNG or as plain TIFF")
    if (pixels := image.width * image.height) > most_pixels:
        raise ImageError(
            f"{name}: {image.width} x {image.height} pixels are more than the limit of {most_pixels:,}: "
            f"give --max-pixels {pixels}, or shrink it"
        )
    return image


def decode(data: bytes, name: str, levels: Levels | None, most_pixels: int, draft: int | None) -> Image.Image:
    """The image that `decode_sized` gives."""
    return decode_sized(data, name, levels, most_pixels, draft)[0]


def decode_sized(
    data: bytes, name: str, levels: Levels | None, most_pixels: int, draft: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    """Upright image of mode L, La, RGB, RGBa (alpha already multiplied in) or F, all with values 0..255.

    With it, width and height of all of the file's picture, upright too. draft: lets a JPEG decoder leave out detail as
    long as both sides keep that many pixels.
    Raises ImageError, beginning with `name`, for a file that is empty, damaged, cut off, no image, too large, or of
    values that are outside the scale.
    """
    image = open_picture(data, name, most_pixels)
    size = image.size
    try:
        with image:
            refuse_cut_png(image, data)
            if today := levels is not None and levels.rules > 1:
                refuse_signed_bytes(image, name)
            if draft is not None:
                # At twice the final size this halves the time; after the resize to 256 px 99 % of the pixels
                # differ from a full decode by 2 levels or less, all by 5 (six real textures, quality 92).
                image.draft(image.mode, (draft, draft))
            if is_deep(image):
                values = deep_values(image, over_black=today)
                turn = turn_of(image)
                return upright(Image.fromarray(scale(values, image, levels, name)), turn), turned(size, turn)
            deep = deep_colour(data, image, levels, name)
            image.load()
            profile = None if levels is None else image.info.get("icc_profile")
            picture = _plain(image if deep is None else deep, profile, levels)
            turn = turn_of(image)
            return upright(picture, turn), turned(size, turn)
    except UserError:
        raise
    except Exception as error:
        # Pillow's decoders let nearly every kind of exception out on a corrupt file.
        raise unreadable(error, data, name) from error


def refuse_cut_png(image: Image.Image, data: bytes) -> None:
    """Raise OSError for a PNG that was cut behind its last row, before the checksums: Pillow accepts it."""
    if image.format == "PNG" and not 0 <= data.rfind(b"IEND") <= len(data) - 8:
        raise OSError("image file is truncated")


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """How an image has to be turned to stand upright, by its EXIF orientation."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Broken EXIF says nothing about orientation, and the pixels are whole.
        return None


def turned(size: tuple[int, int], turn: Image.Transpose | None) -> tuple[int, int]:
    """Width and height of an image after its turn."""
    width, height = size
    return (height, width) if turn in _ON_ITS_SIDE else (width, height)


def upright(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """The image after its turn."""
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image, profile: bytes | None, levels: Levels | None) -> Image.Image:
    if levels is not None and (image.mode == "LAB" or other_than_srgb(profile, by_name=levels.rules < 2)):
        image = to_srgb(with_opacity(image, profile) if levels.rules > 1 else image, profile) or image
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        straight = image if image.mode in ("La", "RGBa") else image.convert("LA" if grey else "RGBA")
        return straight.convert("La" if grey else "RGBa")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def unreadable(error: Exception, data: bytes, name: str) -> ImageError:
    """The error of a file that Pillow could not decode."""
    if isinstance(error, MemoryError):
        return ImageError(f"{name}: does not fit into memory ({one_line(error)}); shrink it")
    reason = one_line(error)
    if isinstance(error, UnidentifiedImageError):
        reason = describe_tiff(data) or ("no image format that Pillow knows" if data else "empty file")
    if "MAX_TEXT" in reason or "text chunks" in reason:
        limit = PngImagePlugin.MAX_TEXT_MEMORY // 2**20
        return ImageError(f"{name}: holds more than the limit of {limit} MiB of text; save it without")
    return ImageError(f"{name}: cannot be read as an image ({reason}); replace or remove it")
