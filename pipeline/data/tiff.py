"""What a TIFF holds that Pillow cannot decode, told from its tags."""

from __future__ import annotations

import io

from PIL import TiffImagePlugin

# Tag 339, SampleFormat.
_KINDS = {1: "integers", 2: "signed integers", 3: "floating point"}


def describe_tiff(data: bytes) -> str | None:
    """One phrase of what a TIFF holds and which form can be read; None where it is no TIFF or its tags are damaged."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        file = io.BytesIO(data)
        head = file.read(8) if data[2:4].strip(b"\0") == b"*" else file.read(16)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        bits, samples = tags[TiffImagePlugin.BITSPERSAMPLE][0], tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        kind = _KINDS.get(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "values")
    except Exception:  # damaged tags say nothing
        return None
    channels = "1 channel" if samples == 1 else f"{samples} channels"
    return (
        f"a TIFF of {channels} of {bits}-bit {kind} that Pillow does not read: save it as grey or RGB of 8 or 16 bits, "
        "or as one channel of 32-bit floating point"
    )
