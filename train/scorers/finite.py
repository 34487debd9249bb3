"""Large tensors in chunks of bounded memory, and the checks that every value is finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Elements of the largest temporary: 2^24 float64 are 128 MiB, whatever the number of patches.
_CHUNK_ELEMENTS = 2**24


def in_chunks(rows: Tensor, elements_per_row: int) -> tuple[Tensor, ...]:
    """The rows of a tensor, so many at a time that a temporary of `elements_per_row` values per row stays bounded."""
    chunks: tuple[Tensor, ...] = torch.split(rows, max(1, _CHUNK_ELEMENTS // elements_per_row))
    return chunks


def finite(embeddings: Tensor) -> Tensor:
    """The same tensor; ValueError where a value is not finite."""
    if not all(bool(chunk.isfinite().all()) for chunk in in_chunks(embeddings, embeddings.shape[-1])):
        raise ValueError("embeddings hold a value that is not finite")
    return embeddings


def finite_tensor(embeddings: NDArray[np.float32]) -> Tensor:
    """A float64 tensor of an array; ValueError where a value is not finite."""
    return finite(torch.from_numpy(np.array(embeddings, dtype=np.float64)))


def not_finite(values: object, endless: str, name: str = "") -> Iterator[str]:
    """The names, such as ``scorers.gaussian.mean``, of numbers and tensors that hold a value which is not finite.

    endless: a name whose values may be infinite, though not below 0.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from not_finite(value, endless, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list | tuple):
        for place, value in enumerate(values):
            yield from not_finite(value, endless, f"{name}.{place}")
    elif isinstance(values, float | Tensor):
        # By numpy: torch would wake its threads for every small tensor, which takes longer than to read the file.
        found = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
        sound = np.isfinite(found) | (found == math.inf) if name.endswith(f".{endless}") else np.isfinite(found)
        if not sound.all():
            yield name
