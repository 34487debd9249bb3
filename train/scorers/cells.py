"""The cells of an image: how unlike the normals each is, by its patch distance and by the localiser's logit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CellScale:
    """What the held-out normals' cells say of the scales of distances and logits.

    deviation: of their patch distances. bound: the quantile of their logits that the recipe names; where there is no
    localiser it says nothing.
    """

    deviation: float = 1.0
    bound: float = 0.0

    def combine(self, distances: Tensor, logits: Tensor | None, weight: float) -> Tensor:
        """(B,h,w) float32, 0 or more: distances (B,h,w) over their deviation, raised where a logit is above the bound.

        weight: of what a logit (B,h,w) is above the bound. A logit below it says nothing: the localiser can only
        accuse, and only beyond what it says of normals.
        """
        if logits is None:
            return distances
        return distances / self.deviation + weight * (logits - self.bound).clamp(min=0)
