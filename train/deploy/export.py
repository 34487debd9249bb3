"""A detector as a file that other programs run without this package, and beside it what they need to know of it."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.together import replacing_together
from train.deploy import onnx_file, openvino_file
from train.deploy.description import describe
from train.deploy.formats import format_of
from train.deploy.onnx_file import onnx_model
from train.deploy.openvino_file import save_openvino
from train.deploy.program import make_program
from train.detector import Detector
from train.run_folder import find_detector

# The packages that each format needs beside those of every installation; the extra has the name of the format.
_PACKAGES: dict[str, tuple[str, ...]] = {
    "pt2": (),
    "onnx": onnx_file.PACKAGES,
    "openvino": (*onnx_file.PACKAGES, *openvino_file.PACKAGES),
}


def export_model(run: Path, out: Path, form: str | None = None, category: str | None = None) -> str:
    """Write the detector of a run to `out` as a program for batches of any size, and `out`.json; returns the format.

    form: one of `train.deploy.formats.FORMATS`, by default that of the name of `out`. category: of a run that has
    several. The files replace earlier ones when all are whole. UserError for a detector that is not there, or a package
    that is not installed.
    """
    form = format_of(out, form)
    _need(form)
    file = find_detector(run, category)
    detector = Detector.load(file, "cpu")
    description = describe(detector, file, ("torch", *_PACKAGES[form]))
    beside = out.with_name(f"{out.name}.json")
    weights = [out.with_suffix(".bin")] if form == "openvino" else []
    # The folder first: a place that cannot be written is told before the export, which takes long.
    with replacing_together([*weights, out, beside]) as new:
        _write(detector, form, new / out.name, description)
        write_json(new / beside.name, description)
    return form


def _write(detector: Detector, form: str, file: Path, description: Mapping[str, Any]) -> None:
    program = make_program(detector)
    if form == "pt2":
        content = io.BytesIO()  # on a full disk torch would abort the process or hide the cause
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights in channels_last, which it writes as they are
            torch.export.save(program, content, extra_files={"description.json": json.dumps(description)})
        file.write_bytes(content.getbuffer())
        return
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
    model = onnx_model(program, metadata)
    if form == "onnx":
        file.write_bytes(model.SerializeToString())
    else:
        save_openvino(model, metadata, file)


def _need(form: str) -> None:
    if missing := [name for name in _PACKAGES[form] if find_spec(name) is None]:
        raise UserError(f"--format {form} needs {' and '.join(missing)}: pip install 'cutswap[{form}]'")
