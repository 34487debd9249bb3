"""Image files to saliency maps: an image per compute thread on a CPU, in batches on a GPU."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones.load import Backbone
from pipeline.data.images import Decoding, decode_rgb, full_name, read_bytes
from pipeline.errors import ImageError
from pipeline.remote import is_url
from pipeline.saliency import layercam, scale_maps
from pipeline.settings import PrecomputeSettings
from pipeline.threads import CORES
from pipeline.workers.loaded import readers

# Images whose maps are clustered at once: so few that clusters follow the network closely, so many that their cost per
# image is that of a whole chunk.
_IMAGES_AT_ONCE_CPU = 4


@dataclass(frozen=True)
class Source:
    """Where images come from, how they are decoded and what explains them; gpu_batch: images in a batch on a GPU."""

    image_root: str
    decoding: Decoding
    settings: PrecomputeSettings
    backbone: Backbone
    gpu_batch: int

    @property
    def on_cpu(self) -> bool:
        """Whether the network runs on a CPU, one image at a time."""
        return self.backbone.device.type == "cpu"


@dataclass(frozen=True)
class Explained:
    """One image: pixels (S,S,3) and maps (L,h,h), both uint8, and its class (1,); None where it could not be read.

    problem: a line that says why. thread: which one computed it. seconds: of work, by step.
    """

    pixels: NDArray[np.uint8] | None
    sha256: str
    problem: str = ""
    maps: Tensor | None = None
    target_class: Tensor | None = None
    thread: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


Pending = deque[Future[Explained]]


def begin(source: Source, paths: Sequence[str]) -> Pending:
    """Start to read and decode images; on a CPU, also to explain them.

    A local file is read by the thread that explains it. Files behind a URL are read ahead by other threads, since what
    they cost is mostly time to wait; so are those of a GPU, which has no time to wait.
    """
    load = partial(_load, source)
    if source.on_cpu and not is_url(source.image_root):
        return deque(CORES.submit(lambda path: _explain(source, [load(path)])[0], path) for path in paths)
    loading = [readers().submit(load, path) for path in paths]
    if source.on_cpu:
        return deque(CORES.submit(lambda future: _explain(source, [future.result()])[0], future) for future in loading)
    return deque(loading)


def finish(source: Source, pending: Pending) -> Iterator[list[Explained]]:
    """The images of `begin`, explained, a few at a time and in their order."""
    at_once = _IMAGES_AT_ONCE_CPU if source.on_cpu else source.gpu_batch
    try:
        while pending:
            # Taken out of `pending`, which would hold the pixels of all until the end.
            images = [pending.popleft().result() for _ in range(min(at_once, len(pending)))]
            yield images if source.on_cpu else _explain(source, images)
    finally:
        for future in pending:
            future.cancel()


def _load(source: Source, path: str) -> Explained:
    start = time.perf_counter()
    try:
        data = read_bytes(source.image_root, path)
        pixels = decode_rgb(data, source.decoding, full_name(source.image_root, path))
        loaded = Explained(pixels, hashlib.sha256(data).hexdigest())
    except ImageError as error:
        loaded = Explained(None, "", str(error))
    return replace(loaded, seconds={"decode": time.perf_counter() - start})


def _explain(source: Source, images: Sequence[Explained]) -> list[Explained]:
    thread = threading.current_thread().name
    explained = [replace(image, thread=thread) for image in images]
    readable = {i: image.pixels for i, image in enumerate(explained) if image.pixels is not None}
    if readable:
        start = time.perf_counter()
        maps, classes = _maps(source, np.stack(list(readable.values())))
        spent = (time.perf_counter() - start) / len(readable)
        for i, one, target_class in zip(readable, maps, classes.split(1), strict=True):
            seconds = explained[i].seconds | {"network": spent}
            explained[i] = replace(explained[i], maps=one, target_class=target_class, seconds=seconds)
    return explained


def _maps(source: Source, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """(B,S,S,3) images to (B,L,h,h) uint8 saliency and (B,) classes, both on the backbone's device."""
    backbone, settings = source.backbone, source.settings
    pixels = torch.from_numpy(images)
    if not source.on_cpu:
        pixels = pixels.pin_memory()  # the copy then runs while the network computes the images before
    x = pixels.to(backbone.device, non_blocking=True).permute(0, 3, 1, 2)
    with nullcontext() if source.on_cpu else _GPU_GATE:
        raw, classes = layercam(backbone, backbone.normalise(x), settings.stages, precision=settings.precision)
        return scale_maps(raw, settings.map_size), classes.int()


# One task at a time on a GPU, while others decode and write.
_GPU_GATE = threading.Lock()
