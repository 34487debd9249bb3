"""Colours as sRGB: embedded profiles and LAB, by Pillow's ImageCms."""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image, ImageCms


def other_than_srgb(profile: bytes | None) -> bool:
    """Whether a colour profile can be read and is another than sRGB, by its description."""
    try:
        return profile is not None and "srgb" not in _described(profile).casefold()
    except (OSError, ImageCms.PyCMSError):
        return False


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """An image of mode L, LA, RGB, RGBA, CMYK or LAB in sRGB; None where its profile does not fit the mode.

    profile: None only for LAB, whose colours need none.
    """
    if image.mode == "LA":
        colours = to_srgb(image.getchannel("L"), profile)
        if colours is not None:
            colours.putalpha(image.getchannel("A"))
        return colours
    transform = _lab_to_srgb() if image.mode == "LAB" or profile is None else _transform(profile, image.mode)
    try:
        return None if transform is None else transform.apply(image)
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None


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
