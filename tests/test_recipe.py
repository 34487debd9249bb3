from dataclasses import asdict, replace

import pytest

from pipeline.backbones.spec import BACKBONES, choose_stages
from train.features.extract import POOLINGS
from train.recipe import Recipe, recipe_of
from train.scorers.standardise import FUSIONS
from train.scorers.whitening import WHITENINGS
from train.settings import FinetuneSettings, PatchCoreSettings, Settings, TrainSettings

ARMS: dict[str, Settings] = {
    "cutswap": TrainSettings(),
    "untrained": TrainSettings(negatives="none"),
    "patchcore": PatchCoreSettings(),
    "patchcore-whitened": PatchCoreSettings(whitened=True),
    "finetuned": FinetuneSettings(),
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("arm", ARMS)
def test_a_recipe_names_what_there_is(backbone: str, arm: str) -> None:
    recipe = recipe_of(backbone, ARMS[arm])
    assert recipe.patch_grid in recipe.patch_stages == choose_stages(backbone, recipe.patch_stages)
    assert not recipe.embedding_stages or recipe.embedding_stages == choose_stages(backbone, recipe.embedding_stages)
    assert choose_stages(backbone, (recipe.cell_grid,)) == (recipe.cell_grid,)
    assert POOLINGS.keys() >= {*recipe.pooling} and recipe.whitening in ("none", *WHITENINGS)
    assert recipe.deciding_score in (*recipe.scorers, *(FUSIONS if recipe.members else ()))
    assert {*recipe.scorers} >= {*recipe.members, *recipe.control}


def test_what_a_user_sets_is_in_the_recipe() -> None:
    settings = TrainSettings(coreset=7, scorer="patches")
    recipe = recipe_of("resnet18", settings)
    assert (recipe.most_references, recipe.deciding_score) == (7, "patches")
    assert recipe_of("resnet18", PatchCoreSettings(coreset=0.2)).reference_share == 0.2
    # What only decides how the localiser is trained is not.
    assert recipe_of("resnet18", replace(settings, steps=9, crop=64, head_lr=0.5, negatives="mix")) == recipe


def test_only_what_decides_is_needed_to_decide() -> None:
    by_largest, by_localiser = (recipe_of("resnet18", TrainSettings(scorer=name)) for name in ("largest", "localiser"))
    assert by_largest.members == ("gaussian", "cells") == by_localiser.members
    for whitened in (False, True):
        patchcore = recipe_of("resnet18", PatchCoreSettings(whitened=whitened))
        assert patchcore.scorers == (patchcore.deciding_score,) and patchcore.members == ()


@pytest.mark.parametrize("nothing", [{"negatives": "none"}, {"steps": 0}])
def test_without_a_localiser_the_control_decides(nothing: dict[str, object]) -> None:
    trained, untrained = TrainSettings(), replace(TrainSettings(), **nothing)  # type: ignore[arg-type]
    assert trained.trains and not untrained.trains
    recipe = recipe_of("resnet18", untrained)
    assert recipe.members == recipe.scorers == ("gaussian", "patches") == recipe_of("resnet18", trained).control
    assert recipe.control == ()


def test_the_normals_are_fitted_once_for_all_trained_and_untrained_arms() -> None:
    def fitted(settings: Settings) -> tuple[object, ...]:
        return recipe_of("resnet18", settings).fitted_to_normals

    shared = fitted(TrainSettings())
    for settings in (TrainSettings(negatives="mix", scorer="sum"), TrainSettings(steps=0), FinetuneSettings()):
        assert fitted(settings) == shared
    others: tuple[Settings, ...] = (PatchCoreSettings(), PatchCoreSettings(whitened=True), TrainSettings(coreset=7))
    assert len({shared, *map(fitted, others)}) == 4


# What is fitted to the normals does not depend on how the scores of an image are made of its cells.
AFTER = {"cell_grid", "logit_quantile", "logit_weight", "trusted_from", "map_reach", "top_share", "blur"}
AFTER |= {"scorers", "members", "control"}


@pytest.mark.parametrize("name", sorted(Recipe.__dataclass_fields__))
def test_every_rule_of_the_fit_tells_fits_apart(name: str) -> None:
    recipe = recipe_of("resnet18", TrainSettings())
    changed = Recipe(**{**asdict(recipe), name: "another"})
    assert (changed.fitted_to_normals == recipe.fitted_to_normals) is (name in {*AFTER, "deciding_score"})
