"""Which device a computation runs on."""

from __future__ import annotations

import torch

from pipeline.errors import UserError
from pipeline.execution import DEVICES
from pipeline.setting import refuse


def choose_device(asked: str) -> torch.device:
    """The device for "auto" (CUDA where there is one), "cpu" or "cuda"; UserError for a CUDA that is not there."""
    if asked not in DEVICES:
        refuse("--device", asked, " or ".join(DEVICES))
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if asked == "auto" and torch.cuda.is_available() else asked.replace("auto", "cpu"))
