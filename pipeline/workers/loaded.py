"""What a process loads once, for all its tasks and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, wraps
from typing import TypeVar

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.cache.cache import open_cache
from pipeline.cache.category import CachedCategory
from pipeline.threads import available_cores

T = TypeVar("T")


def _once_per_process(load: Callable[..., T]) -> Callable[..., T]:
    """Load one thing for all threads; functools.cache by itself would let several threads load at once."""
    # A lock of its own: images are read ahead while another thread loads the network.
    cached, lock = cache(load), threading.Lock()

    @wraps(load)
    def locked(*arguments: str | int) -> T:
        with lock:
            return cached(*arguments)

    return locked


@_once_per_process
def readers() -> ThreadPoolExecutor:
    """Threads that read and decode images ahead of the network, at most two chunks of them per task."""
    return ThreadPoolExecutor(max(2, available_cores()), thread_name_prefix="read")


@_once_per_process
def open_category(store: str, cache_id: str, name: str) -> CachedCategory:
    """A category to write to; cache_id tells a cache that was started again from the one before it."""
    return open_cache(store, "r+")[name]


@_once_per_process
def open_backbone(name: str, weights: str, seed: int, device: str, folded: bool) -> Backbone:
    """A network on its device, folded for inference or plain."""
    plain = load_backbone(name, weights, seed)
    return (for_inference(plain) if folded else plain).to(device)
