"""The cells of an image: how unlike the normals each is, by its patch distance and by the localiser's logit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus

from train.recipe import Recipe


@dataclass(frozen=True)
class CellScale:
    """What the held-out normals' cells say of distances and logits; where there is no localiser, nothing.

    deviation: of their patch distances. bound: the quantile of their logits that the recipe names. own_kind: image
    AUROC of the localiser's score, of held-out normals against negatives made of them.
    """

    deviation: float = 1.0
    bound: float = 0.0
    own_kind: float = 0.5

    def to_decide(self, recipe: Recipe, distances: Tensor, logits: Tensor | None) -> Tensor:
        """(B,h,w) float32, 0 or more: distances (B,h,w) over their deviation, raised where a logit is above the bound.

        A logit (B,h,w) below it says nothing: the localiser can only accuse, and only beyond what it says of normals.
        Without logits the distances stay as they are.
        """
        if logits is None:
            return distances
        return distances / self.deviation + recipe.logit_weight * (logits - self.bound).clamp(min=0)

    def to_show(self, recipe: Recipe, distances: Tensor, logits: Tensor | None) -> Tensor:
        """The same for a map, in which logits somewhat below the bound count as well, as far as they are trusted.

        A map ranks the cells of all images, where a suspicion counts even if normals have some like it. Trust rises
        from 0 to 1 with `own_kind`, from `recipe.trusted_from` to 1.
        """
        cells = self.to_decide(recipe, distances, logits)
        trust = (self.own_kind - recipe.trusted_from) / (1 - recipe.trusted_from)
        if logits is None or trust <= 0:
            return cells
        above = logits - self.bound
        return cells + trust * recipe.logit_weight * (softplus(above + recipe.map_reach) - above.clamp(min=0))
