"""Every rule that makes a score out of an image: stated here, stored in the detector, read by all that scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

from train.settings import PatchCoreSettings, Settings, TrainSettings


@dataclass(frozen=True)
class Recipe:
    """The rules of a detector. No field has a default: a stored recipe does not change with the version.

    embedding_stages, pooling: the stages whose activations make an image's embedding, none where no scorer needs it;
    and what of each channel of them, by the names of `train.features.extract.POOLINGS`.
    patch_stages, patch_grid, neighbourhood: the stages that make a cell's embedding, each averaged over so many cells a
    side, and the one of them whose grid they are brought to.
    directions, ridge: most directions kept of the discriminant of patches, and what is added to the normals' variance,
    as a share of its mean. changed_share: a patch was changed where more than this share of its pixels was.
    way_references, way_candidates: references from which the ways of patches are measured, and the patches that they
    are chosen from.
    reference_candidates: references are chosen from about so many of the normals' patches, None from all.
    reference_share, most_references: this share of them is kept, at most so many, None no bound. coreset_width:
    dimensions of the random projection on which references are chosen.
    top_share: an image's patch score is the mean of this share of its cells, the highest, and of one at least.
    blur: sigma of the Gaussian that smooths the map, as a share of the image's side. neighbours: k of the k-NN.
    scorers: what is fitted and reported. members: those of them that "sum" adds up, each less the mean of the held-out
    normals and over their sample deviation; empty where there is no sum. deciding_score: one of `scorers`, or "sum".
    """

    embedding_stages: tuple[str, ...]
    pooling: tuple[str, ...]
    patch_stages: tuple[str, ...]
    patch_grid: str
    neighbourhood: int
    directions: int
    ridge: float
    changed_share: float
    way_references: int
    way_candidates: int
    reference_candidates: int | None
    reference_share: float
    most_references: int | None
    coreset_width: int
    top_share: float
    blur: float
    neighbours: int
    scorers: tuple[str, ...]
    members: tuple[str, ...]
    deciding_score: str

    @property
    def embedding_rules(self) -> tuple[object, ...]:
        """What decides the embeddings of the normals, but for the seed."""
        stages = self.embedding_stages, self.pooling, self.patch_stages, self.patch_grid
        return *stages, self.neighbourhood, self.reference_candidates

    @property
    def deciding_scorers(self) -> tuple[str, ...]:
        """The scorers that the deciding score needs."""
        return self.members if self.deciding_score == "sum" else (self.deciding_score,)


# Of an embedding, of patches, and of PatchCore's patches. The grid is that of the second of the patches' stages, or of
# the first of PatchCore's: a cell every 8 pixels.
_RESNET = (("layer1", "layer2", "layer3", "layer4"), ("layer1", "layer2", "layer3"), ("layer2", "layer3"))
_STAGES = {
    "efficientnet_lite0": (
        ("blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6"),
        ("blocks.1", "blocks.2", "blocks.3", "blocks.4"),
        ("blocks.2", "blocks.4"),
    ),
    "resnet18": _RESNET,
    "resnet50": _RESNET,
    "wide_resnet50_2": _RESNET,
}


def recipe_of(backbone: str, settings: Settings) -> Recipe:
    """The recipe of an arm with a backbone of `pipeline.backbones.spec`; every default is ours: docs/method.md."""
    if isinstance(settings, PatchCoreSettings):
        return _patchcore(backbone, settings)
    embedding, patches, _ = _STAGES[backbone]
    head = () if settings.negatives == "none" else ("head",)
    return Recipe(
        embedding_stages=embedding,
        pooling=("mean",),
        patch_stages=patches,
        patch_grid=patches[1],
        neighbourhood=3,
        directions=64,
        ridge=1e-3,
        changed_share=0.5,
        # The time of the ways grows with both, that of a coreset with the product of candidates and references.
        way_references=2000,
        way_candidates=30_000,
        reference_candidates=50_000,
        reference_share=1.0,
        most_references=settings.coreset,
        coreset_width=128,
        top_share=0.08,
        blur=4 / 224,  # PatchCore's
        neighbours=settings.neighbours,
        scorers=("untrained", "embedding", "patches", "gde", "knn", *head),
        members=("untrained", "embedding", "patches"),
        deciding_score=settings.scorer,
    )


def _patchcore(backbone: str, settings: PatchCoreSettings) -> Recipe:
    """PatchCore (Roth et al., CVPR 2022, arXiv 2106.08265): its stages and coreset, the largest cell, nothing learned.

    Without the paper's re-weighting of the image's score by the neighbours of the nearest, which the authors'
    published code leaves out as well.
    """
    stages = _STAGES[backbone][2]
    return replace(
        recipe_of(backbone, TrainSettings(negatives="none")),
        embedding_stages=(),
        patch_stages=stages,
        patch_grid=stages[0],
        reference_candidates=None,
        reference_share=settings.coreset,
        most_references=None,
        top_share=0.0,
        scorers=("patchcore",),
        members=(),
        deciding_score="patchcore",
    )
