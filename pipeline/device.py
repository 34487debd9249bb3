"""Which device a computation runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.setting import refuse

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def choose_device(asked: str) -> torch.device:
    """The device for "auto" (CUDA where there is one), "cpu" or "cuda"; UserError for a CUDA that is not there."""
    import torch  # here: settings and --help read DEVICES, and torch takes seconds to import

    if asked not in DEVICES:
        refuse("--device", asked, " or ".join(DEVICES))
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if asked == "auto" and torch.cuda.is_available() else asked.replace("auto", "cpu"))
