import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import unfold

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from train.features.extract import as_it_is, embed, map_images, patch_embedding, pooled_embedding
from train.recipe import recipe_of
from train.settings import PatchCoreSettings, TrainSettings

NAME = "efficientnet_lite0"
RECIPE = recipe_of(NAME, TrainSettings())
QUARTERS = (slice(0, 4), slice(4, 8))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return for_inference(load_backbone(NAME, "none"))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- one embedding an image ---------------------------------------------------------------------------------------


def test_a_pooled_embedding_holds_every_stages_channel_means() -> None:
    activations = [noise(2, 3, 8, 8), noise(2, 5, 4, 2).half()]
    pooled = pooled_embedding(activations, ("mean",))
    assert pooled.shape == (2, 8) and pooled.dtype == torch.float32
    for i, activation in enumerate(activations):
        expected = activation.float().numpy().mean((2, 3))
        np.testing.assert_allclose(pooled[:, (0, 3)[i] : (3, 8)[i]], expected, atol=1e-6)


def test_deviations_and_quadrants_follow_the_means_stage_by_stage() -> None:
    activations = [noise(2, 3, 8, 8), noise(2, 5, 8, 8, seed=1)]
    parts = []
    for values in (activation.numpy() for activation in activations):
        parts += [values.mean((2, 3)), values.std((2, 3))]
        quadrants = [values[:, :, rows, columns].mean((2, 3)) for rows in QUARTERS for columns in QUARTERS]
        parts.append(np.stack(quadrants, 2).reshape(2, -1))
    pooled = pooled_embedding(activations, ("mean", "deviation", "quadrants"))
    np.testing.assert_allclose(pooled, np.concatenate(parts, 1), atol=1e-6)


def test_an_image_of_one_colour_has_no_deviation_and_four_like_quadrants() -> None:
    pooled = pooled_embedding([torch.full((1, 2, 6, 6), 3.0)], ("deviation", "quadrants"))
    assert pooled.tolist() == [[0, 0, *[3] * 8]]


# --- one embedding a patch ----------------------------------------------------------------------------------------


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


# --- a forward pass -----------------------------------------------------------------------------------------------


def test_one_pass_gives_the_embeddings_of_the_recipes_stages(backbone: Backbone) -> None:
    images = torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8)
    found = embed(backbone, RECIPE, images, "blocks.1")

    def activations(*stages: str) -> list[Tensor]:
        return backbone.activations(backbone.normalise(images), stages)

    assert torch.equal(found.pooled, pooled_embedding(activations(*RECIPE.embedding_stages), RECIPE.pooling))
    # The patches lie on the grid of stride 16, the cells on that of stride 8.
    assert torch.equal(found.patches, patch_embedding(activations(*RECIPE.patch_stages), (3, 4), RECIPE.neighbourhood))
    assert found.grid == (6, 8)
    assert found.shared is not None and torch.equal(found.shared, activations("blocks.1")[0])


def test_without_stages_of_an_embedding_there_is_none(backbone: Backbone) -> None:
    recipe = recipe_of(NAME, PatchCoreSettings())
    found = embed(backbone, recipe, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert found.pooled.shape == (2, 0) and found.pooled.dtype == torch.float32 and found.shared is None
    assert found.patches.shape[2:] == found.grid == (8, 8)


def test_images_are_mapped_in_their_order_without_gradients() -> None:
    images = [np.full((4, 4, 3), value, np.uint8) for value in range(40)]
    seen = list(map_images(lambda batch: (batch, torch.is_grad_enabled()), images, as_it_is, torch.device("cpu")))
    assert [int(batch[0, 0, 0, 0]) for batch, _ in seen] == list(range(40))
    assert all(batch.shape == (1, 3, 4, 4) and not gradients for batch, gradients in seen)
