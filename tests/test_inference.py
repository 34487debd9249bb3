"""The network for inference: the same activations, maps and gradients as the plain one, without batch norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.backbones.spec import BACKBONES
from pipeline.saliency import layercam


def images(size: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 6, 6, generator=generator) * 255
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


@pytest.fixture(scope="module", params=BACKBONES)
def plain(request: pytest.FixtureRequest) -> Backbone:
    """With random statistics: those of an untrained network, 0 and 1, would fold whatever is done to them."""
    backbone = load_backbone(request.param, "none")
    generator = torch.Generator().manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias):
                assert values is not None
                values.data.copy_(torch.randn(values.shape, generator=generator) * 0.1)
            for values in (module.running_var, module.weight):
                assert values is not None
                values.data.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return backbone


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_activations_are_those_of_the_plain_network_and_no_batch_norm_is_left(plain: Backbone) -> None:
    before = {name: values.clone() for name, values in plain.state_dict().items()}
    folded = for_inference(plain)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not [parameter for parameter in folded.parameters() if parameter.requires_grad]
    x, names = plain.normalise(images()), plain.stage_names
    with torch.no_grad():
        assert_close(folded.activations(x, names), plain.activations(x, names))
    # The given network is left as it was.
    assert all(torch.equal(values, before[name]) for name, values in plain.state_dict().items())


def test_maps_are_those_of_the_plain_network() -> None:
    plain = load_backbone("efficientnet_lite0")
    x = plain.normalise(images(128))
    maps, classes = layercam(for_inference(plain), x, plain.spec.default_stages)
    expected, expected_classes = layercam(plain, x, plain.spec.default_stages)
    assert_close(maps, expected)
    assert torch.equal(classes, expected_classes)


def test_nothing_runs_behind_the_last_stage_wanted(plain: Backbone) -> None:
    folded = for_inference(plain)
    ran: list[int] = []
    for number, stage in enumerate(folded.stages):
        stage.register_forward_hook(lambda *_, number=number: ran.append(number))
    folded.activations(folded.normalise(images()), folded.stage_names[:2])
    assert ran == [0, 1]


def test_a_folded_copy_can_be_trained() -> None:
    folded = for_inference(load_backbone("efficientnet_lite0")).requires_grad_(True)
    folded.activations(folded.normalise(images(64)), ["blocks.2"])[0].square().mean().backward()
    first = next(parameter for parameter in folded.stem.parameters())
    assert first.grad is not None and float(first.grad.abs().max()) > 0


def test_a_batch_norm_that_no_convolution_feeds_stays() -> None:
    plain = load_backbone("resnet18", "none")
    plain.stages[3] = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(256), plain.stages[3]).eval()
    folded = for_inference(plain)
    left = [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [module.num_features for module in left] == [256]
    x = plain.normalise(images())
    with torch.no_grad():
        assert_close(folded.activations(x, plain.stage_names), plain.activations(x, plain.stage_names))
