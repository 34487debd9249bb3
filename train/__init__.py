"""Train: a cache in, a detector and its scores out; from Python, `from train import Detector`.

run: every category and seed. fit: the training loop. recipe: the rules of a detector. detector: the result.
run_folder: the layout of what is written. settings: what decides a detector. calibration: scales and threshold.
evaluate: a detector against test images.
negatives: normals out of the cache, and the negatives made of them.
features: embeddings, and the network that training changes.
scorers: what is fitted to normals and learned from negatives.
evaluation: metrics and results. views: plots.
deploy: a detector at work. benchmark: arms compared.
"""

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
