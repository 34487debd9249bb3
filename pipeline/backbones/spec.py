"""What each backbone is: its stages, its preprocessing and the name of its ImageNet weights; no network is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError


@dataclass(frozen=True)
class Spec:
    """What the rest of the project needs to know of a backbone.

    name: what `--backbone` takes. stages: every name `--stages` takes, shallow to deep; default_stages: those it takes
    by itself. mean, std: of the input's channels, in 0..1. imagenet: what its ImageNet weights are published as.
    """

    name: str
    stages: tuple[str, ...]
    default_stages: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    imagenet: str


def _resnet(name: str, imagenet: str) -> Spec:
    layers = ("layer1", "layer2", "layer3", "layer4")
    return Spec(
        name,
        stages=layers,
        default_stages=layers,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        imagenet=imagenet,
    )


_SPECS = (
    Spec(
        "efficientnet_lite0",
        stages=tuple(f"blocks.{i}" for i in range(7)),
        default_stages=("blocks.1", "blocks.2", "blocks.4", "blocks.6"),
        mean=(0.498, 0.498, 0.498),
        std=(0.502, 0.502, 0.502),
        imagenet="efficientnet-lite0-57934424",
    ),
    _resnet("resnet18", "ResNet18_Weights.IMAGENET1K_V1"),
    _resnet("resnet50", "ResNet50_Weights.IMAGENET1K_V2"),
    _resnet("wide_resnet50_2", "Wide_ResNet50_2_Weights.IMAGENET1K_V2"),
)
BACKBONES: dict[str, Spec] = {spec.name: spec for spec in _SPECS}


def find_spec(name: str) -> Spec:
    """The spec of a backbone; an unknown name raises UserError."""
    if name not in BACKBONES:
        raise UserError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def choose_stages(name: str, stages: Sequence[str] = ()) -> tuple[str, ...]:
    """The stages asked for, or the backbone's default ones, shallow to deep; unknown ones raise UserError."""
    spec = find_spec(name)
    unknown = [stage for stage in stages if stage not in spec.stages]
    if unknown:
        raise UserError(f"{name} has no stage {unknown[0]!r}: choose from {', '.join(spec.stages)}")
    return tuple(stage for stage in spec.stages if stage in stages) if stages else spec.default_stages


def weights_digest(name: str, weights: str) -> str:
    """What identifies the weights in a cache: "none", the published name of the ImageNet ones, or a file's SHA-256."""
    if weights == "none":
        return "none"
    if weights == "imagenet":
        return find_spec(name).imagenet
    try:
        return "sha256:" + hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"--weights {weights} cannot be read ({error.strerror}): give a state dict file") from error
