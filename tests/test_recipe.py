from dataclasses import replace

import pytest

from pipeline.backbones.spec import BACKBONES, choose_stages
from train.recipe import recipe_of
from train.settings import PatchCoreSettings, TrainSettings


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("settings", [TrainSettings(), PatchCoreSettings()], ids=["cutswap", "patchcore"])
def test_the_stages_of_every_recipe_are_those_of_its_backbone(
    backbone: str, settings: TrainSettings | PatchCoreSettings
) -> None:
    recipe = recipe_of(backbone, settings)
    assert recipe.patch_grid in recipe.patch_stages == choose_stages(backbone, recipe.patch_stages)
    assert not recipe.embedding_stages or recipe.embedding_stages == choose_stages(backbone, recipe.embedding_stages)


def test_what_a_user_sets_is_in_the_recipe() -> None:
    settings = TrainSettings(coreset=7, neighbours=3, scorer="knn")
    recipe = recipe_of("resnet18", settings)
    assert (recipe.most_references, recipe.neighbours, recipe.deciding_score) == (7, 3, "knn")
    assert recipe_of("resnet18", PatchCoreSettings(coreset=0.2)).reference_share == 0.2
    # What only decides how the head is trained is not.
    assert recipe_of("resnet18", replace(settings, steps=9, head_lr=0.5)) == recipe


def test_only_what_decides_is_needed_to_decide() -> None:
    by_sum, by_head = (recipe_of("resnet18", TrainSettings(scorer=scorer)) for scorer in ("sum", "head"))
    assert by_sum.deciding_scorers == ("untrained", "embedding", "patches") == by_head.members
    assert by_head.deciding_scorers == ("head",)
    patchcore = recipe_of("resnet18", PatchCoreSettings())
    assert patchcore.deciding_scorers == patchcore.scorers == ("patchcore",) and patchcore.members == ()
    assert "head" not in recipe_of("resnet18", TrainSettings(negatives="none")).scorers
