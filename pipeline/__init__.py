"""Precompute: normal images in, a cache of saliency maps, clusters and patch pairs out; `open_cache` opens one.

saliency, clusters, pairs, swap: the method, on arrays. precompute: the driver. settings: what decides a cache.
backbones: the pretrained networks.
data: images on a disk or in an object store.
cache: the Zarr store, made, updated, read and verified.
workers: tasks, and the threads, processes or Dask cluster that run them.
views: a cache to look at. export: a cache as files for other programs.
threads, memory: how this process computes. surroundings: what must not decide how a command ends.
errors, ending, device, progress, files, ownership, remote, setting, options, settings_file: what all of these stand on.
"""

from typing import TYPE_CHECKING, Any

from pipeline.backbones.torchvision_repair import install

if TYPE_CHECKING:
    from pipeline.cache.cache import open_cache

__all__ = ["open_cache"]

install()


def __getattr__(name: str) -> Any:  # noqa: ANN401 - as the language has it
    # Lazily: most modules of this package are imported by commands that open no cache.
    if name == "open_cache":
        from pipeline.cache.cache import open_cache

        return open_cache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
