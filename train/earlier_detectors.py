"""Detectors of earlier formats, 3 (commit 091a564) to 6, in the form of today's.

None holds the scores of its held-out normals. Those of formats 3 to 5 hold discriminants learned in closed form, which
today's scorers read as they are, and scorers beside those that decide by default; these others are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from train.scorers.cells import CellScale
from train.scorers.gaussian import gaussian_of_factor
from train.scorers.state import state_of

EARLIER = (3, 4, 5, 6)
# Of images and of patches.
_OF_IMAGES = ("untrained", "embedding")
_OF_PATCHES = ("patches", "patchcore")
# Rules of training, and of scorers that are left out.
_GONE = ("directions", "changed_share", "way_references", "way_candidates", "neighbours")


def bring_up(path: Path, state: Mapping[str, Any], backbone: str) -> dict[str, Any]:
    """The contents of a detector's file; UserError where a scorer decides that this version no longer has."""
    state = {**state, "map_threshold": state["map_range"][1], "normal_scores": []}
    if state["format"] == 6:
        return state
    recipe = state["recipe"] if state["format"] > 3 else _recipe_of_format_3(backbone, state["settings"])
    scorers = tuple(name for name in recipe["scorers"] if name in (*_OF_IMAGES, *_OF_PATCHES))
    if recipe["deciding_score"] not in (*scorers, "sum"):
        raise UserError(
            f"{path} decides by {recipe['deciding_score']}, which this version no longer has:"
            " train again, or use the version that wrote it"
        )
    recipe = {name: value for name, value in recipe.items() if name not in _GONE} | {"scorers": scorers}
    recipe |= {"whitening": "none", "most_embeddings": None, "cell_grid": recipe["patch_grid"]}
    recipe |= {"logit_quantile": 1.0, "logit_weight": 0.0, "control": (), "trusted_from": 0.9, "map_reach": 0.0}
    fitted = {name: state["scorers"][name] for name in _OF_IMAGES if name in state["scorers"]}
    return {
        **state,
        "recipe": recipe,
        "localiser": None,
        "finetuned": None,
        "scorers": {name: state_of(gaussian_of_factor(**factor)) for name, factor in fitted.items()},
        "references": state["scorers"]["patches"],
        "cells": state_of(CellScale()),
    }


def _recipe_of_format_3(backbone: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The rules of commit 091a564, in full, so that a change of today's rules does not reach its detectors."""
    lite = backbone == "efficientnet_lite0"
    return {
        "embedding_stages": tuple(f"blocks.{i}" for i in range(2, 7))
        if lite
        else ("layer1", "layer2", "layer3", "layer4"),
        "pooling": ("mean",),
        "patch_stages": tuple(f"blocks.{i}" for i in range(1, 5)) if lite else ("layer1", "layer2", "layer3"),
        "patch_grid": "blocks.2" if lite else "layer2",
        "neighbourhood": 3,
        "ridge": 1e-3,
        "reference_candidates": 50_000,
        "reference_share": 1.0,
        "most_references": settings["coreset"],
        "coreset_width": 128,
        "top_share": 0.08,
        "blur": 4 / 224,
        "scorers": ("untrained", "embedding", "patches"),
        "members": ("untrained", "embedding", "patches"),
        "deciding_score": settings["scorer"],
    }
