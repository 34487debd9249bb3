"""How long an exported detector takes, beside PatchCore's: `python benchmarks/latency.py [IMAGES] [REPEATS] [SIZE]`.

Both detectors are fitted to so many real solar cells of SIZE px, the default one with a single step of training, which
changes no time. Each is asked about one image, and about 16 at once, in memory at that size: by `predict`, and as a
program of each format. All take turns, on all cores. A row has the milliseconds of a call, median and 95th percentile,
of the default detector and of PatchCore's, and the median of the former over that of the latter.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import CORES, integers, seconds, write_images
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from pipeline.cache.cache import open_cache
from pipeline.data.datasets import load
from pipeline.precompute import precompute
from pipeline.progress import hide_progress
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from train.deploy.export import export_model
from train.deploy.formats import FORMATS
from train.detector import Detector
from train.run import open_run
from train.settings import PatchCoreSettings, Settings, TrainSettings
from train.training import train

BATCHES = (1, 16)
ARMS: dict[str, Settings] = {"default": TrainSettings(steps=1), "patchcore": PatchCoreSettings()}
# What is asked about images (B,3,H,W) uint8, contiguous.
Asked = Callable[[NDArray[np.uint8]], object]


def in_torch(file: Path) -> Asked:
    program = torch.export.load(file).module()
    return lambda images: program(torch.from_numpy(images))


def in_onnxruntime(file: Path) -> Asked:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def in_openvino(file: Path) -> Asked:
    import openvino

    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled({"images": images})


RUNTIMES = {"pt2": in_torch, "onnx": in_onnxruntime, "openvino": in_openvino}


def ways_to_ask(run: Path) -> dict[str, Asked]:
    """`predict` and every format of a run's detector."""
    detector = Detector.load(run, "cpu")
    ways: dict[str, Asked] = {"predict": lambda images: detector.predict(list(images.transpose(0, 2, 3, 1)))}
    for form, suffix in FORMATS.items():
        file = run / f"detector{suffix}"
        export_model(run, file)
        ways[form] = RUNTIMES[form](file)
    return ways


def trained(folder: Path, images: int, size: int) -> tuple[dict[str, dict[str, Asked]], NDArray[np.uint8]]:
    """The ways to ask each arm, and 16 images (16,3,size,size) that their detectors have seen."""
    write_images(folder / "images", images)
    store = str(folder / "cache.zarr")
    precompute([(load("folder", str(folder / "images")), store)], PrecomputeSettings(image_size=size))
    for arm, settings in ARMS.items():
        train(open_run(store, folder / arm, settings, execution=Execution(device="cpu")))
    pixels = open_cache(store)["cells"].read("images")
    sixteen = pixels[np.arange(max(BATCHES)) % len(pixels)].transpose(0, 3, 1, 2)
    return {arm: ways_to_ask(folder / arm) for arm in ARMS}, np.ascontiguousarray(sixteen)


def in_turn(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """The milliseconds of each call, made so many times in turn, after two that warm up."""
    took = [{name: 1000 * seconds(call) for name, call in calls.items()} for _ in range(repeats + 2)]
    return {name: [turn[name] for turn in took[2:]] for name in calls}


def main(images: int, repeats: int, size: int) -> None:
    columns = [f"{arm}, {what}" for arm in ARMS for what in ("median", "95 %")]
    table = Table(
        Column(no_wrap=True),
        *columns,
        "ratio",
        title=f"ms a call, {images} normals of {size} px, {repeats} calls, {CORES} cores",
    )
    with tempfile.TemporaryDirectory() as folder, hide_progress():
        ways, sixteen = trained(Path(folder), images, size)
        for way in ways["default"]:
            for count in BATCHES:
                spent = in_turn({arm: partial(ways[arm][way], sixteen[:count]) for arm in ARMS}, repeats)
                cells = [f"{np.percentile(values, share):.1f}" for values in spent.values() for share in (50, 95)]
                ratio = np.median(spent["default"]) / np.median(spent["patchcore"])
                table.add_row(f"{way}, {count}", *cells, f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main(*integers(sys.argv[1:], 200, 100, 256))
