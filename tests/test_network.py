import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import unfold

from pipeline.backbones.load import load_backbone
from train.features.extract import patch_embedding, pooled_embedding
from train.features.network import CutSwapNetwork, Whitening
from train.recipe import recipe_of
from train.scorers.gaussian import fit_gaussian
from train.settings import TrainSettings

NAME = "efficientnet_lite0"
RECIPE = recipe_of(NAME, TrainSettings())


@pytest.fixture(scope="module")
def network() -> CutSwapNetwork:
    return CutSwapNetwork(load_backbone(NAME, "none"), RECIPE, 3, frozen=False).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- embeddings ---------------------------------------------------------------------------------------------------


def test_a_pooled_embedding_holds_every_stages_channel_means() -> None:
    activations = [noise(2, 3, 8, 8), noise(2, 5, 4, 2).half()]
    pooled = pooled_embedding(activations, ("mean",))
    assert pooled.shape == (2, 8) and pooled.dtype == torch.float32
    for i, activation in enumerate(activations):
        expected = activation.float().numpy().mean((2, 3))
        np.testing.assert_allclose(pooled[:, (0, 3)[i] : (3, 8)[i]], expected, atol=1e-6)


def test_a_patch_embedding_averages_the_neighbours_that_exist() -> None:
    activation = noise(2, 3, 5, 6)
    patches = patch_embedding([activation], (5, 6), 3)
    sums = unfold(activation, 3, padding=1).view(2, 3, 9, 5, 6).sum(2)
    neighbours = unfold(torch.ones(1, 1, 5, 6), 3, padding=1).view(9, 5, 6).sum(0)
    torch.testing.assert_close(patches, sums / neighbours)


def test_deeper_stages_are_brought_to_the_first_ones_grid() -> None:
    fine, coarse = noise(2, 3, 8, 8), torch.full((2, 4, 2, 2), 7.0)
    coarse[1] = -1
    patches = patch_embedding([fine, coarse], (8, 8), 3)
    assert patches.shape == (2, 7, 8, 8)
    torch.testing.assert_close(patches[:, :3], patch_embedding([fine], (8, 8), 3))
    torch.testing.assert_close(patches[0, 3:], torch.full((4, 8, 8), 7.0))
    torch.testing.assert_close(patches[1, 3:], torch.full((4, 8, 8), -1.0))


def test_finer_stages_are_averaged_down_to_the_grid() -> None:
    fine = torch.zeros(1, 1, 8, 8)
    fine[..., 4:] = 3
    patches = patch_embedding([fine, torch.ones(1, 2, 2, 2)], (4, 4), 3)
    assert patches.shape == (1, 3, 4, 4)
    # The border lies between columns 3 and 4; a 3x3 average spreads it over one column to either side.
    torch.testing.assert_close(patches[0, 0], torch.tensor([0, 0.5, 2.5, 3]).expand(4, 4))
    torch.testing.assert_close(patches[0, 1:], torch.ones(2, 4, 4))


# --- whitening ----------------------------------------------------------------------------------------------------


def test_whitened_normals_have_mean_0_and_the_same_spread_in_every_direction() -> None:
    width = 6
    mixed = (noise(20_000, width) @ noise(width, width, seed=1) * 30 + 100).numpy()
    whitening = Whitening(width)
    gaussian = fit_gaussian(mixed)
    whitening.fit(gaussian.mean, gaussian.factor)
    whitened = whitening(torch.from_numpy(mixed)).numpy()
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(whitened.T) * width, np.eye(width), atol=0.05)
    assert np.mean(np.square(whitened).sum(1)) == pytest.approx(1, abs=0.02)


def test_whitening_is_kept_but_not_trained() -> None:
    whitening = Whitening(4)
    assert not list(whitening.parameters())
    gaussian = fit_gaussian(noise(10, 4).numpy())
    whitening.fit(gaussian.mean, gaussian.factor)
    other = Whitening(4)
    other.load_state_dict(whitening.state_dict())
    embeddings = noise(3, 4, seed=2)
    assert torch.equal(other(embeddings), whitening(embeddings))
    assert not torch.allclose(whitening(embeddings), embeddings)


# --- the network --------------------------------------------------------------------------------------------------


def test_logits_are_those_of_the_pooled_embedding(network: CutSwapNetwork) -> None:
    images = torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8)
    embedding = network.embedding(images)
    activations = network.backbone.activations(network.backbone.normalise(images.float()), RECIPE.embedding_stages)
    assert torch.equal(embedding, pooled_embedding(activations, ("mean",)))
    logits = network(images)
    assert logits.shape == (3, 3)
    assert torch.equal(logits, network.classify(embedding))
    torch.testing.assert_close(logits, embedding @ network.head.weight.T + network.head.bias)


def test_the_head_sees_whitened_embeddings() -> None:
    network = CutSwapNetwork(load_backbone(NAME, "none"), RECIPE, 2, frozen=False)
    embeddings = noise(5, network.head.in_features)
    before = network.classify(embeddings)
    gaussian = fit_gaussian((noise(9, network.head.in_features, seed=3) + 2).numpy())
    network.whitening.fit(gaussian.mean, gaussian.factor)
    after = network.classify(embeddings)
    torch.testing.assert_close(after, network.head(network.whitening(embeddings)))
    assert not torch.allclose(before, after)


def test_the_loss_reaches_the_first_layer() -> None:
    network = CutSwapNetwork(load_backbone(NAME, "none").requires_grad_(True), RECIPE, 2, frozen=False)
    network(torch.rand(2, 3, 32, 32) * 255)[:, 0].sum().backward()
    first = next(network.backbone.stem.parameters()).grad
    assert first is not None and first.abs().max() > 0


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_the_head_fits_every_backbone(name: str) -> None:
    network = CutSwapNetwork(load_backbone(name, "none"), recipe_of(name, TrainSettings()), 5, frozen=True)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
