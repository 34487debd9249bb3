"""The formats of exported detectors, and how their files are called."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UserError

FORMATS = {"pt2": ".pt2", "onnx": ".onnx", "openvino": ".xml"}


def format_of(out: Path, asked: str | None = None) -> str:
    """The format of a file to write: as asked, else by the end of its name; UserError where the two do not fit."""
    told = next((name for name, suffix in FORMATS.items() if out.suffix == suffix), None)
    if asked is None:
        if told is None:
            *some, last = FORMATS.values()
            raise UserError(f"--out {out} tells no format: end it in {', '.join(some)} or {last}, or give --format")
        return told
    # Any other end will do, but OpenVINO reads no file whose name ends otherwise.
    if told != asked and (told is not None or asked == "openvino"):
        raise UserError(f"--out {out} is no name for --format {asked}: end it in {FORMATS[asked]}")
    return asked
