import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torchvision.models import get_model

from pipeline.backbones.load import Backbone, load_backbone
from pipeline.backbones.spec import BACKBONES, choose_stages, find_spec, weights_digest
from pipeline.errors import UserError


def equal_states(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def error_line(name: str, weights: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(name, str(weights))
    assert "\n" not in str(caught.value) and str(weights) in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def x(photos: NDArray[np.uint8]) -> Tensor:
    """(2,3,64,64) uint8."""
    return torch.from_numpy(photos[:2]).permute(0, 3, 1, 2)


# --- stages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_the_stages_of_every_spec_are_those_of_the_network(name: str) -> None:
    spec = find_spec(name)
    backbone = load_backbone(name, "none")
    assert backbone.stage_names == spec.stages
    assert spec.default_stages == choose_stages(name, spec.default_stages)
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_stage_by_stage_is_the_whole_network(name: str, x: Tensor) -> None:
    backbone = load_backbone(name, "none", seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        whole = timm.create_model("tf_efficientnet_lite0") if name == "efficientnet_lite0" else get_model(name)
    x = backbone.normalise(x)
    with torch.no_grad():
        *_, last = backbone.activations(x, backbone.stage_names)
        torch.testing.assert_close(backbone.head(last), whole.eval()(x))


def test_activations_are_those_asked_for_shallow_to_deep(x: Tensor) -> None:
    backbone = load_backbone("efficientnet_lite0")
    x = backbone.normalise(x)
    everything = dict(zip(backbone.stage_names, backbone.activations(x, backbone.stage_names), strict=True))
    assert [a.shape[1] for a in everything.values()] == [16, 24, 40, 80, 112, 192, 320]
    assert [a.shape[2] for a in everything.values()] == [32, 16, 8, 4, 4, 2, 2]
    two = backbone.activations(x, ["blocks.6", "blocks.2"])
    assert [torch.equal(a, everything[name]) for a, name in zip(two, ("blocks.2", "blocks.6"), strict=True)] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("asked", "stages"),
    [
        ((), ("blocks.1", "blocks.2", "blocks.4", "blocks.6")),
        (("blocks.5", "blocks.0"), ("blocks.0", "blocks.5")),
        (("blocks.3", "blocks.3"), ("blocks.3",)),
    ],
)
def test_stages_are_put_in_the_networks_order(asked: Sequence[str], stages: tuple[str, ...]) -> None:
    assert choose_stages("efficientnet_lite0", asked) == stages


@pytest.mark.parametrize(
    ("name", "stages", "told"),
    [("resnet18", ("layer1", "layer9"), ["layer9", "layer4"]), ("alexnet", (), ["alexnet", "efficientnet_lite0"])],
)
def test_unknown_names_are_told_with_the_known_ones(name: str, stages: Sequence[str], told: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        choose_stages(name, stages)
    assert all(word in str(caught.value) for word in told) and "\n" not in str(caught.value)


def test_normalise_takes_the_published_mean_and_deviation(x: Tensor) -> None:
    lite0, resnet = load_backbone("efficientnet_lite0", "none"), load_backbone("resnet18", "none")
    found = lite0.normalise(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (x / 255 - 0.498) / 0.502)
    torch.testing.assert_close(lite0.normalise(x.float()), found)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(resnet.normalise(x), (x / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))


# --- weights ------------------------------------------------------------------------------------------------------


def test_imagenet_weights_are_trained_ones(photos: NDArray[np.uint8]) -> None:
    backbone = load_backbone("efficientnet_lite0")
    x = backbone.normalise(torch.from_numpy(photos).permute(0, 3, 1, 2))
    with torch.no_grad():
        best = backbone.head(backbone.activations(x, ["blocks.6"])[0]).argmax(1)
    names = {ImageNetInfo().index_to_description(int(index)).split(",")[0] for index in best}
    # What a solar cell, a grid of thin lines, looks like to ImageNet; tensors in a wrong order would name anything.
    assert names <= {"prison", "shoji", "tile roof", "window screen", "solar dish"}


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_random_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one = load_backbone(name, "none", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert equal_states(one, load_backbone(name, "none", seed=1))
    assert not equal_states(one, load_backbone(name, "none", seed=2))


@pytest.mark.parametrize(
    ("name", "theirs"), [("efficientnet_lite0", "tf_efficientnet_lite0"), ("resnet18", "resnet18")]
)
def test_a_state_dict_in_a_file_loads(name: str, theirs: str, tmp_path: Path, x: Tensor) -> None:
    network = (timm.create_model(theirs) if name == "efficientnet_lite0" else get_model(theirs)).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    backbone = load_backbone(name, str(tmp_path / "weights.pt"))
    x = backbone.normalise(x)
    with torch.no_grad():
        *_, last = backbone.activations(x, backbone.stage_names)
        torch.testing.assert_close(backbone.head(last), network(x))


def test_a_state_dict_under_other_names_loads_in_its_order(tmp_path: Path) -> None:
    network = get_model("resnet18")
    torch.save({f"net.{key}": value for key, value in network.state_dict().items()}, tmp_path / "renamed.pt")
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    renamed, plain = (load_backbone("resnet18", str(tmp_path / f"{name}.pt")) for name in ("renamed", "plain"))
    assert equal_states(renamed, plain)


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(get_model("resnet50").state_dict(), tmp_path / "other.pt")
    assert "resnet18" in error_line("resnet18", tmp_path / "other.pt")
    state = get_model("resnet18").state_dict()
    torch.save({**state, "fc.weight": torch.zeros(10, 512)}, tmp_path / "fewer-classes.pt")
    line = error_line("resnet18", tmp_path / "fewer-classes.pt")
    assert "fc.weight" in line and "(10, 512)" in line and "(1000, 512)" in line
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "incomplete.pt")
    assert "layer3.0.conv1.weight is missing" in error_line("resnet18", tmp_path / "incomplete.pt")


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").touch()
    torch.save({"model": get_model("resnet18").state_dict()}, tmp_path / "nested.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("text", "empty", "nested", "tensor", "module"):
        assert "state" in error_line("resnet18", tmp_path / f"{name}.pt")


def test_a_weights_file_runs_no_code(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "run"),)  # type: ignore[return-value]

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    error_line("resnet18", tmp_path / "evil.pt")
    torch.save({"fc.weight": Malicious()}, tmp_path / "evil2.pt")
    error_line("resnet18", tmp_path / "evil2.pt")
    assert not (tmp_path / "run").exists()


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pt"
    assert "No such file" in error_line("resnet18", missing)
    assert "directory" in error_line("resnet18", tmp_path).lower()
    with pytest.raises(UserError, match=r"missing\.pt cannot be read"):
        weights_digest("resnet18", str(missing))


def test_weights_are_told_apart_by_their_digest(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"some weights")
    assert weights_digest("resnet18", str(file)) == "sha256:" + hashlib.sha256(b"some weights").hexdigest()
    assert weights_digest("resnet18", "none") == "none"
    published = {weights_digest(name, "imagenet") for name in BACKBONES}
    assert len(published) == len(BACKBONES)


def test_a_backbone_saves_and_loads_without_its_preprocessing() -> None:
    backbone = load_backbone("resnet18", "none")
    assert not {"mean", "std"} & backbone.state_dict().keys()
    assert isinstance(backbone, Backbone)
