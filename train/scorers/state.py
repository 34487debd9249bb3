"""A fitted object as a flat dict of tensors, which `torch.load(..., weights_only=True)` reads, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]
T = TypeVar("T")


def state_of(fitted: object) -> State:
    """Field name -> tensor, on the device of a fitted object; a number becomes a tensor without axes."""
    # By way of numpy, as torch.tensor would round a Python float to float32.
    return {n: v if isinstance(v, Tensor) else torch.tensor(np.array(v)) for n, v in vars(fitted).items()}


def from_state(kind: Callable[..., T], state: State) -> T:
    """Inverse of `state_of`; the fitted object works on the device of these tensors."""
    return kind(**{name: value if value.ndim else value.item() for name, value in state.items()})


def on_device(fitted: T, device: torch.device) -> T:
    """The same on a device."""
    return from_state(type(fitted), {name: value.to(device) for name, value in state_of(fitted).items()})
