from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.backbones.spec import BACKBONES
from train.localiser.network import Localiser

RESNET = ("layer1", ("layer2", "layer3"))
# The stage that is shared, the last before stride 8, and those that are trained, of strides 8 and 16.
STAGES = {
    "efficientnet_lite0": ("blocks.1", ("blocks.2", "blocks.3", "blocks.4")),
    "resnet18": RESNET,
    "resnet50": RESNET,
    "wide_resnet50_2": RESNET,
}


@dataclass(frozen=True, eq=False)
class Made:
    """A backbone for inference, the weights it had, and a localiser on it."""

    backbone: Backbone
    before: dict[str, Tensor]
    localiser: Localiser


def made(name: str) -> Made:
    backbone = for_inference(load_backbone(name, "none"))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    torch.manual_seed(0)
    return Made(backbone, before, Localiser(backbone))


@pytest.fixture(scope="module", params=BACKBONES)
def each(request: pytest.FixtureRequest) -> Made:
    """Of every backbone, with random weights."""
    return made(str(request.param))


@pytest.fixture(scope="module")
def small() -> Made:
    """Of the default backbone."""
    return made("efficientnet_lite0")


def shared(one: Made, height: int, width: int, count: int = 1) -> Tensor:
    """The activation of the stage that the localiser starts from, of random images."""
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height)) * 255
    with torch.no_grad():
        return one.backbone.activations(one.backbone.normalise(images), (one.localiser.input_stage,))[0]


def test_it_starts_behind_the_last_stage_before_stride_8_and_trains_those_to_stride_16(each: Made) -> None:
    input_stage, stages = STAGES[each.backbone.spec.name]
    assert each.localiser.input_stage == input_stage and len(each.localiser.stages) == len(stages)
    for name, mine in zip(stages, each.localiser.stages, strict=True):
        theirs = each.backbone.stages[each.backbone.stage_names.index(name)].state_dict()
        assert mine.state_dict().keys() == theirs.keys() and theirs
        assert all(torch.equal(value, theirs[key]) for key, value in mine.state_dict().items())


def test_the_trained_stages_are_copies_and_what_lies_before_them_is_not_in_it(each: Made) -> None:
    mine = {parameter.data_ptr() for parameter in each.localiser.parameters()}
    assert not mine & {parameter.data_ptr() for parameter in each.backbone.parameters()}
    assert all(parameter.requires_grad for parameter in each.localiser.parameters())
    assert not any(parameter.requires_grad for parameter in each.backbone.parameters())
    names = {name.split(".")[0] for name in each.localiser.state_dict()}
    assert names == {"stages", "bring", "head"}


def test_cells_have_stride_8(each: Made) -> None:
    found = shared(each, 64, 96, count=2)
    assert found.shape[2:] == (16, 24)
    with torch.no_grad():
        logits = each.localiser(found)
    assert logits.shape == (2, 8, 12) and logits.dtype == torch.float32 and logits.isfinite().all()


@pytest.mark.parametrize("side", [32, 40, 100])
def test_sides_that_are_no_multiples_of_the_strides(each: Made, side: int) -> None:
    with torch.no_grad():
        logits = each.localiser(shared(each, side, side + 9))
    assert logits.shape == (1, -(-side // 8), -(-(side + 9) // 8)) and logits.isfinite().all()


def test_an_image_has_the_same_logits_whatever_is_beside_it(small: Made) -> None:
    found = shared(small, 64, 64, count=3)
    with torch.no_grad():
        together, alone = small.localiser(found), torch.cat([small.localiser(one[None]) for one in found])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_before_training_most_cells_are_called_unchanged(each: Made) -> None:
    with torch.no_grad():
        logits = each.localiser(shared(each, 64, 64, count=2))
    assert (logits < 0).float().mean() > 0.9 and logits.std() > 0


def test_first_weights_are_drawn_from_torchs_seed(small: Made) -> None:
    torch.manual_seed(0)
    same = Localiser(small.backbone).state_dict()
    other = Localiser(small.backbone).state_dict()
    mine = small.localiser.state_dict()
    assert all(torch.equal(value, same[key]) for key, value in mine.items())
    different = {key for key, value in mine.items() if not torch.equal(value, other[key])}
    assert "bring.0.weight" in different and not any(key.startswith("stages.") for key in different)


def test_every_stage_is_trained_and_a_step_leaves_the_backbone_as_it_was(each: Made) -> None:
    localiser = Localiser(each.backbone)
    before = {name: parameter.detach().clone() for name, parameter in localiser.named_parameters()}
    optimiser = torch.optim.SGD(localiser.parameters(), lr=0.1)
    localiser(shared(each, 64, 64, count=2)).square().mean().backward()
    optimiser.step()
    changed = set()
    for name, parameter in localiser.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not torch.equal(parameter, before[name]):
            changed.add(".".join(name.split(".")[:2]))
    parts = ["head", "bring", "stages"]
    assert changed == {
        f"{part}.{i}" for part in parts for i, one in enumerate(getattr(localiser, part)) if [*one.parameters()]
    }
    after = each.backbone.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in each.before.items())


def test_a_state_dict_makes_the_same_localiser_again(small: Made) -> None:
    torch.manual_seed(9)
    again = Localiser(small.backbone)
    again.load_state_dict(small.localiser.state_dict())
    found = shared(small, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(found), small.localiser(found))
