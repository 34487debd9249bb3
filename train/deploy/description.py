"""What a program needs to know of an exported detector, beside its graph: how images are prepared, and what decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.data.levels import Levels
from pipeline.files import sha256_of
from train.cell_folder import SEED
from train.detector import Detector
from train.threshold import rounded


def describe(detector: Detector, file: Path, packages: Sequence[str]) -> dict[str, Any]:
    """The content of `FILE.json`, see docs/deploy.md; file: the detector's, packages: those that wrote the program."""
    levels = detector.levels or Levels()
    return {
        "image_size": detector.precompute_settings.image_size,
        "resize": detector.precompute_settings.resize,
        "interpolation": "bilinear",
        "channels": "RGB",
        "scale": {"integer": levels.integer or 65535, "real": levels.real or 1.0},
        "threshold": rounded(detector.threshold),
        "map_threshold": rounded(detector.calibration.map_threshold),
        "region": None,
        "category": _category(file),
        "scorer": detector.recipe.deciding_score,
        "detector_sha256": sha256_of(file),
        "versions": _versions(packages),
    }


def _category(file: Path) -> str | None:
    """By the folders of a run; None where the detector lies elsewhere."""
    seed = file.absolute().parent
    return seed.parent.name if seed.name.startswith(SEED) else None


def _versions(packages: Sequence[str]) -> Mapping[str, str]:
    versions = {}
    for name in ("cutswap", *packages):
        with suppress(PackageNotFoundError):  # a checkout need not be installed
            versions[name] = version(name)
    return versions
