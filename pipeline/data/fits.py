"""What a FITS holds that Pillow reads wrongly or only in part, told from its header (FITS standard 4.0)."""

from __future__ import annotations

from PIL import Image

_CARD = 80
# Section 4.4.2.5: a value is BZERO + BSCALE * what is stored. Pillow gives what is stored.
_UNSCALED = {"BZERO": 0.0, "BSCALE": 1.0}


def unread_fits(image: Image.Image, data: bytes) -> str:
    """One phrase of what an opened FITS has that Pillow passes over, "" where there is nothing of it.

    Raises ValueError for a header whose numbers are none.
    """
    head = data[: image.tile[0].offset] if getattr(image, "tile", None) else b""  # type: ignore[attr-defined]
    for start in range(0, len(head), _CARD):
        name, _, value = head[start : start + _CARD].decode("latin-1").partition("=")
        name, value = name.strip(), value.partition("/")[0].strip()
        # Fortran writes exponents with D.
        if name in _UNSCALED and float(value.replace("D", "E")) != _UNSCALED[name]:
            return f"a FITS whose values are to be scaled ({name} {value})"
        if name.startswith("NAXIS") and name[5:].isdigit() and int(name[5:]) > 2 and int(value) > 1:
            return f"a FITS of several planes ({name} {value})"
    return ""
