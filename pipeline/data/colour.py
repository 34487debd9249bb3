"""Colours as sRGB: embedded profiles and LAB, by Pillow's ImageCms."""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image, ImageCms


def other_than_srgb(profile: bytes | None) -> bool:
    """Whether a colour profile can be read and is another than sRGB, by its description."""
    try:
        return profile is not None and not _described(profile).casefold().startswith("srgb")
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
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    try:
        return ImageCms.buildTransform(own, srgb, mode, "RGBA" if mode == "RGBA" else "RGB")
    except (OSError, ImageCms.PyCMSError):
        return None


@lru_cache(1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
