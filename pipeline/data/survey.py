"""A look at some normals of a category, once, for what holds for all of its images: what is white, which colours."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from pipeline.data.colour import fits, other_than_srgb
from pipeline.data.images import read_bytes
from pipeline.data.levels import (
    INTEGERS,
    REALS,
    Levels,
    brightest,
    deep_colour_values,
    deep_values,
    is_deep,
    is_deep_colour,
)
from pipeline.data.listing import path_digest
from pipeline.data.pixels import turn_of, turned
from pipeline.errors import UserError
from pipeline.remote import is_url
from pipeline.threads import CORES

# Enough that the brightest of them shows how many bits the camera has.
_MOST = 256
# Floating point may pass its white a little, at reflections or after a resize.
_TOLERANCE = 1.5
# The usual whites have gaps; one of which an image would use less than this share would leave it fewer than 32 levels.
_LEAST_USED = 1 / 8


@dataclass(frozen=True)
class Survey:
    """What a look at `looked` normals found.

    levels: of the category; integer, real, profile: how many of them have integers of more than 8 bits, floating point,
    and a colour profile other than sRGB. sizes: width and height of each of them as it stands upright, rising.
    """

    levels: Levels
    looked: int
    integer: int
    real: int
    profile: int
    sizes: tuple[tuple[int, int], ...]

    def lines(self) -> list[str]:
        """What a user should know of it, a line for each kind; none for plain images of 8 bits."""
        of = f"of {self.looked} images looked at"
        lines = []
        if self.integer and self.levels.integer:
            bits = self.levels.integer.bit_length()
            lines.append(
                f"{self.integer} {of} have 16 bits per channel and use {bits} of them: {self.levels.integer} is white"
            )
        if self.real and self.levels.real:
            lines.append(f"{self.real} {of} are floating point: {self.levels.real:g} is white")
        if self.profile:
            lines.append(f"{self.profile} {of} have a colour profile: its colours become sRGB")
        return lines


@dataclass(frozen=True)
class _Seen:
    """Of one image: its size, the largest value where it has more than 8 bits, and whether it has a colour profile."""

    size: tuple[int, int]
    integer: float | None = None
    real: float | None = None
    profile: bool = False


def survey(image_root: str, paths: Sequence[str], most_pixels: int) -> Survey:
    """Look at up to 256 images below `image_root`, those whose paths have the lowest digests.

    Of images of 8 bits only the header is decoded. White is the least of the usual values (`INTEGERS`) that at most 1 %
    of the images exceed, pixels that may be stuck left aside; for floating point the least that half of the
    images do not exceed by more than half, or, where these would use less than an eighth of it, the least power of two
    that they do not exceed. An image that cannot be read is not counted: `precompute` names it.
    """
    chosen = sorted(paths, key=path_digest)[:_MOST]
    seen = [one for one in CORES.spread(partial(_look, image_root, most_pixels), chosen) if one is not None]
    integers = sorted(one.integer for one in seen if one.integer is not None)
    reals = [one.real for one in seen if one.real is not None]
    levels = Levels(None, None)
    if integers:
        # One image of another camera among a hundred does not count.
        most = integers[-1 - len(integers) // 100]
        white = next((level for level in INTEGERS if level >= most), INTEGERS[-1])
        levels = Levels(white, levels.real)
    if reals:
        levels = Levels(levels.integer, _white_of_reals(float(np.median(reals))))
    sizes = tuple(sorted(one.size for one in seen))
    return Survey(levels, len(seen), len(integers), len(reals), sum(one.profile for one in seen), sizes)


def _white_of_reals(most: float) -> float:
    white = next((level for level in REALS if level * _TOLERANCE >= most), REALS[-1])
    return white if most <= 0 or most >= _LEAST_USED * white else 2.0 ** math.ceil(math.log2(most))


def _opened(image_root: str, path: str) -> BinaryIO:
    # A local file need not be read for its header.
    return io.BytesIO(read_bytes(image_root, path)) if is_url(image_root) else Path(image_root, path).open("rb")


def _look(image_root: str, most_pixels: int, path: str) -> _Seen | None:
    try:
        with _opened(image_root, path) as file, Image.open(file) as image:
            icc = image.info.get("icc_profile")
            profile = icc is not None and other_than_srgb(icc) and fits(icc, image)
            deep, colour = is_deep(image), is_deep_colour(image)
            if image.width * image.height > most_pixels:
                return None
            # A PNG without EXIF before its pixels would be decoded to look for one behind them.
            turn = None if image.format == "PNG" and "exif" not in image.info else turn_of(image)
            plain = _Seen(turned(image.size, turn), profile=profile)
            if not (deep or colour):
                return plain
            file.seek(0)
            values = deep_values(image) if deep else deep_colour_values(file.read(), image)[..., :3]
            most = brightest(values)
            if image.mode == "F":
                return replace(plain, real=most, profile=False)
            return replace(plain, integer=most, profile=colour and profile)
    except UserError:
        return None
    except Exception:  # as in `pipeline.data.pixels`: Pillow's decoders let nearly every kind out
        return None
