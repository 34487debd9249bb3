"""Train: a cache in, a detector and its scores out; from Python, `from train import Detector`.

run: what a run is. training: every category and seed of it. cell: one of each. category_data: what the cells of a
category share. settings: what decides a detector. recipe: its rules. made_of: what decided a cell. optimise: the
training loop. finetune: the arm `finetuned`. calibration: scales and threshold. detector: the result.
earlier_detectors: those of earlier formats. evaluate: a detector against test images. run_folder, cell_folder: the
layout of what is written.
negatives: normals out of the cache, and the negatives made of them.
features: embeddings of images and of patches.
localiser: the network that learns from negatives.
scorers: what is fitted to normals, and what it and the localiser say of images.
evaluation: metrics and results. views: plots.
deploy: a detector at work. benchmark: arms compared.
"""

from typing import TYPE_CHECKING

import pipeline as pipeline  # repairs torchvision before any module of this package can import it

if TYPE_CHECKING:
    from train.detector import Detector
    from train.prediction import Prediction

__all__ = ["Detector", "Prediction"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'train' has no attribute {name!r}")
    from train import detector  # here: it takes the seconds that torch takes to import

    return getattr(detector, name)
