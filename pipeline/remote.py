"""Object stores and other fsspec URLs: how to open one, which extra it needs, and how its failures read.

Endpoints and credentials come from the environment (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` and so on), as each
filesystem documents.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from importlib.util import find_spec
from typing import Any

from pipeline.errors import UserError, one_line

_EXTRAS = {"s3": ("s3", "s3fs"), "gs": ("gs", "gcsfs"), "az": ("az", "adlfs")}
_EXTRAS |= {"s3a": _EXTRAS["s3"], "gcs": _EXTRAS["gs"], "abfs": _EXTRAS["az"]}
# Exceptions of these packages mean that the remote side is unreachable, refuses or closes the connection.
_PACKAGES = frozenset({"aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google"})
# With the pauses between five of them a minute in all.
_SECONDS = 10

# gcsfs logs every failure with a traceback, in addition to the error that it raises.
logging.getLogger("gcsfs").addHandler(logging.NullHandler())


def is_url(place: str) -> bool:
    """Whether `place` is an fsspec URL (also a chain like ``zip://::s3://bucket/x.zip``), not a local path."""
    return "://" in place


def options(url: str) -> dict[str, Any]:
    """What to open the filesystem of `url` with."""
    # A listing must not be remembered: other processes write to the same place.
    chosen: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(("s3://", "s3a://")):
        # Else s3fs asks for the size of an object before it reads it: twice the requests.
        chosen["max_concurrency"] = 1
        chosen["config_kwargs"] = _patience()
    return chosen


def _patience() -> dict[str, Any]:
    """How long botocore waits for an answer, each of the five times that it asks; then the command ends."""
    from botocore.exceptions import ConnectionClosedError, HTTPClientError, ResponseStreamingError
    from s3fs import core

    # s3fs would ask a silent server again, 5 or 25 times; it still does where a connection breaks or a body stops.
    again = [kind for kind in core.S3_RETRYABLE_ERRORS if kind is not HTTPClientError]
    core.S3_RETRYABLE_ERRORS = tuple(dict.fromkeys((*again, ConnectionClosedError, ResponseStreamingError)))
    return {"connect_timeout": _SECONDS, "read_timeout": _SECONDS}


def need_extra(url: str) -> None:
    """Raise `UserError` naming the extra to install where the package for the URL's protocol is missing."""
    for protocol in re.findall(r"(\w+)://", url):
        extra, package = _EXTRAS.get(protocol, ("", ""))
        if package and find_spec(package) is None:
            raise UserError(f"{url} needs the package {package}: pip install 'cutswap[{extra}]'")


@cache
def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of `url` and the path on it, without a slash at its end; one per process, for all threads.

    Raises `UserError` where its package is not installed, fsspec knows no such protocol, or an account is not named.
    """
    # Imported here: a local path needs no fsspec.
    from fsspec.core import url_to_fs

    need_extra(url)
    try:
        filesystem, base = url_to_fs(url, **options(url))
    except ImportError as error:
        raise UserError(f"{url}: {error}") from error
    except ValueError as error:
        raise UserError(f"{url}: cannot be opened ({error})") from error
    return filesystem, str(base).rstrip("/")


def describe_io_error(error: BaseException) -> str | None:
    """What went wrong, in one line, where `error` comes from files, a network or an object store; else None."""
    package = type(error).__module__.partition(".")[0]
    if not isinstance(error, OSError) and package not in _PACKAGES:
        return None
    return one_line(error)
