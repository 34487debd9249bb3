"""Images to a cache of saliency maps, clusters and patch pairs; `open_cache` opens one."""

from typing import TYPE_CHECKING, Any

from pipeline.torchvision_repair import install

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
