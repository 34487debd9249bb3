"""CutSwap's training: from a cache to a detector and its scores; from Python, `from train import Detector`."""

from typing import TYPE_CHECKING

import pipeline as pipeline  # repairs torchvision before any module of this package can import it

if TYPE_CHECKING:
    from train.detector import Detector, Prediction

__all__ = ["Detector", "Prediction"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'train' has no attribute {name!r}")
    from train import detector  # here: it takes the seconds that torch takes to import

    return getattr(detector, name)
