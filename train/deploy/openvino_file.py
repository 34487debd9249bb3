"""A program in the form of OpenVINO: an .xml file, and its weights beside it in a .bin file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import RunError, one_line

PACKAGES = ("openvino",)


def save_openvino(model: Any, metadata: Mapping[str, str], xml: Path) -> None:  # noqa: ANN401 - an onnx.ModelProto
    """Write both files of an ONNX model; RunError where the disk has no room for them."""
    import openvino

    # Not by its own reader of torch programs, which takes a hundred times as long for the same graph.
    converted = openvino.Core().read_model(model.SerializeToString(), b"")
    for key, value in metadata.items():
        converted.set_rt_info(value, ["model_info", key])
    try:
        # Weights of 16 bits would move scores by more than their last decimal.
        openvino.save_model(converted, xml, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO tells no more
        raise RunError(f"the files of {xml.name} could not be written ({one_line(error)}): free disk space") from error
