"""A program in the form of ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from pipeline.errors import UserError
from train.deploy.program import INPUT, OUTPUTS

PACKAGES = ("onnx", "onnxscript")

# Of all tensors: an ONNX file holds less than 2 GiB, of which the graph takes some.
_MOST_BYTES = 2**31 - 2**24


def onnx_model(program: ExportedProgram, metadata: Mapping[str, str]) -> Any:  # noqa: ANN401 - torch gives it no type
    """The `onnx.ModelProto` of a program, with metadata, and without what names the folders of this machine.

    UserError for a program that is too large for the format.
    """
    held = sum(tensor.nbytes for tensor in (*program.state_dict.values(), *program.tensor_constants.values()))
    if held > _MOST_BYTES:
        raise UserError(f"the detector's {held / 2**30:.1f} GiB are more than ONNX holds in a file: give --format pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(program, input_names=[INPUT], output_names=OUTPUTS, dynamo=True, verbose=False)
    assert exported is not None
    model = exported.model_proto
    graph = model.graph
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    for named in (*graph.input, *graph.output):
        named.type.tensor_type.shape.dim[0].dim_param = "batch"
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model
