"""Colours as sRGB: embedded profiles and LAB, by Pillow's ImageCms."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

# sRGB profiles of different makers differ by so many of 255 levels.
_SAME = 3


def other_than_srgb(profile: bytes | None, *, by_name: bool = False) -> bool:
    """Whether a colour profile can be read and changes colours of sRGB that one sees.

    by_name: as in earlier versions, whether its description begins otherwise.
    """
    try:
        if profile is None or not by_name:
            return profile is not None and _changes_colours(profile)
        return not _described(profile).casefold().startswith("srgb")
    except (OSError, ImageCms.PyCMSError):
        return False


def fits(profile: bytes, image: Image.Image) -> bool:
    """Whether a readable colour profile is one for the mode of an image."""
    return _transform(profile, _managed_mode(profile, image)) is not None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """An image of mode L, LA, RGB, RGBA, CMYK or LAB in sRGB; None where its profile does not fit the mode.

    profile: None only for LAB, whose colours need none.
    """
    if image.mode == "LA":
        colours = to_srgb(image.getchannel("L"), profile)
        if colours is not None:
            colours.putalpha(image.getchannel("A"))
        return colours
    if image.mode == "LAB" or profile is None:
        transform: ImageCms.ImageCmsTransform | None = _lab_to_srgb()
    else:
        mode = _managed_mode(profile, image)
        image = image if image.mode == mode else image.convert(mode)
        transform = _transform(profile, mode)
    try:
        return None if transform is None else transform.apply(image)
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None


def with_opacity(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image with opacity as a channel, which `to_srgb` keeps, where one colour or some of a palette have it."""
    if not image.has_transparency_data or image.mode not in ("L", "RGB", "P", "PA"):
        return image
    if image.mode == "L":
        return image.convert("LA")
    grey = image.mode != "RGB" and profile is not None and _managed_mode(profile, image) == "L"
    return image.convert("RGBA").convert("LA") if grey else image.convert("RGBA")


def _managed_mode(profile: bytes, image: Image.Image) -> str:
    """The mode of Pillow that an image's colours are to have for its profile: those of a palette have its kind."""
    if image.mode not in ("P", "PA"):
        return image.mode
    if profile[16:20] == b"GRAY":  # ICC.1, 7.2.6: the colour space of the data
        return "L"
    return "RGBA" if image.has_transparency_data else "RGB"


@lru_cache(16)
def _described(profile: bytes) -> str:
    return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))


@lru_cache(16)
def _changes_colours(profile: bytes) -> bool:
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    mode = {b"RGB ": "RGB", b"GRAY": "L"}.get(profile[16:20])
    if mode is None:
        return True
    # Eight levels per channel, with black and white, and as many greys as there are.
    steps = np.linspace(0, 255, 8).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 1, 3)
    greys = np.arange(256, dtype=np.uint8)[:, None]
    sample = np.concatenate([colours, greys[..., None].repeat(3, axis=2)]) if mode == "RGB" else greys
    # A profile with tables may differ from sRGB on purpose in its perceptual ones.
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    seen = ImageCms.profileToProfile(Image.fromarray(sample), own, srgb, intent, outputMode="RGB")
    before = sample.reshape(len(sample), 1, -1).astype(int)
    return bool(np.abs(np.asarray(seen) - before).max() > _SAME)


@lru_cache(16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    try:
        return ImageCms.buildTransform(own, srgb, mode, "RGBA" if mode == "RGBA" else "RGB")
    except (OSError, ImageCms.PyCMSError):
        return None


@lru_cache(1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
