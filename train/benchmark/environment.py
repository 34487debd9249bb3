"""The machine and the package versions that a measurement was made with, in words."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from pipeline.threads import available_cores

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow", "zarr", "dask")


def describe_environment(device: str = "auto") -> str:
    """One paragraph: the date, the cores, the GPU that `device` ("auto", "cpu" or "cuda") uses, and the versions."""
    used = device != "cpu" and torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if used else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    cores = f"{available_cores()} CPU cores ({platform.machine()})"
    return f"Written on {datetime.now(UTC).date()}: {cores}, {gpu}. Python {platform.python_version()}, {versions}."
