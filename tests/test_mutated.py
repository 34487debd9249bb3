"""Ten thousand damaged image files, by a fixed seed: each gives pixels or one line, and none anything else."""

import io
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import Decoding, decode_rgb
from pipeline.data.levels import Levels
from pipeline.data.masks import read_mask
from pipeline.data.pixels import MOST_PIXELS
from pipeline.errors import ImageError

FORMATS = {
    "PNG": ("L", "LA", "RGB", "RGBA", "P", "1", "I;16"),
    "TIFF": ("L", "RGB", "CMYK", "I;16", "F", "LAB", "1"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P",),
    "BMP": ("L", "RGB", "1"),
    "PPM": ("L", "RGB"),
    "TGA": ("L", "RGBA"),
    "ICO": ("RGBA",),
    "PCX": ("L", "RGB"),
    "JPEG2000": ("L", "RGB"),
}


def sound() -> Iterator[tuple[str, bytes]]:
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (24, 32), np.uint8)
    for kind, modes in FORMATS.items():
        for mode in modes:
            image = Image.fromarray(grey)
            if mode == "I;16":
                image = Image.fromarray(grey.astype(np.uint16) * 16)
            elif mode == "F":
                image = Image.fromarray(grey.astype(np.float32) / 255)
            elif mode == "LAB":
                image = Image.merge("LAB", [image] * 3)
            else:
                image = image.convert("RGB").convert(mode)
            buffer = io.BytesIO()
            image.save(buffer, kind)
            yield f"{kind} {mode}", buffer.getvalue()


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(len(changed)))
        match random.integers(5):
            case 0:
                changed[at] = random.integers(256)
            case 1:
                changed[at] ^= 1 << int(random.integers(8))
            case 2:
                del changed[at : at + int(random.integers(1, 40))]
            case 3:
                changed[at:at] = random.bytes(int(random.integers(1, 40)))
            case _:
                del changed[at:]
        if not changed:
            break
    return bytes(changed)


@pytest.mark.slow
def test_damaged_files_give_pixels_or_one_line() -> None:
    random = np.random.default_rng(14)
    files = dict(sound())
    outcomes = {"pixels": 0, "line": 0}
    decoding = Decoding(32, "stretch", Levels(integer=4095))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(10_000):
            name, data = list(files.items())[number % len(files)]
            data = mutated(data, random)
            for read, rules in ((decode_rgb, decoding), (read_mask, MOST_PIXELS)):
                try:
                    pixels = read(data, rules, "x")
                except ImageError as error:
                    outcomes["line"] += 1
                    assert str(error).startswith("x: ") and "\n" not in str(error), name
                else:
                    outcomes["pixels"] += 1
                    assert pixels.dtype in (np.uint8, np.bool_) and pixels.size, name
    assert min(outcomes.values()) > 1000, outcomes
