"""Every rule that makes a score out of an image: stated here, stored in the detector, read by all that scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

from train.settings import FinetuneSettings, PatchCoreSettings, Settings, TrainSettings


@dataclass(frozen=True)
class Recipe:
    """The rules of a detector. No field has a default: a stored recipe does not change with the version.

    embedding_stages: those whose activations make an image's embedding, empty if no scorer needs it. pooling: the
    statistics of each channel of them, keys of `train.features.extract.POOLINGS`.
    patch_stages, patch_grid, neighbourhood: the stages that make a patch's embedding, each averaged over so many of its
    own cells a side, and the one of them whose grid they are brought to.
    whitening, ridge: one of `train.scorers.whitening.WHITENINGS`, or "none", and what is added to a correlation of 1.
    reference_candidates: references are chosen from about so many of the normals' patches, None from all.
    reference_share, most_references: this share of them is kept, at most so many, None no bound. coreset_width:
    dimensions of the random projection on which references are chosen.
    most_embeddings: the Gaussian is fitted to at most so many normals, None to all.
    cell_grid: the stage on whose grid the cells are scored. logit_quantile, logit_weight: a cell gains the weight times
    the excess of its logit over this quantile of the held-out normals' logits.
    trusted_from, map_reach: how far a map shows logits below that quantile, see `train.scorers.cells`.
    top_share: an image's patch score is the mean of this share of its cells, the highest, and of one at least.
    blur: sigma of the Gaussian that smooths the map, as a share of the image's side.
    scorers: what is fitted and reported. members: those of them that are fused, each less the mean of the held-out
    normals and over their sample deviation; empty where nothing is fused. control: those that are fused, in the same
    way, to the score "untrained", which tells what the detector would say without its localiser. deciding_score: one
    of `scorers`, or of `train.scorers.standardise.FUSIONS`.
    """

    embedding_stages: tuple[str, ...]
    pooling: tuple[str, ...]
    patch_stages: tuple[str, ...]
    patch_grid: str
    neighbourhood: int
    whitening: str
    ridge: float
    reference_candidates: int | None
    reference_share: float
    most_references: int | None
    coreset_width: int
    most_embeddings: int | None
    cell_grid: str
    logit_quantile: float
    logit_weight: float
    trusted_from: float
    map_reach: float
    top_share: float
    blur: float
    scorers: tuple[str, ...]
    members: tuple[str, ...]
    control: tuple[str, ...]
    deciding_score: str

    @property
    def fitted_to_normals(self) -> tuple[object, ...]:
        """What decides all that is fitted to the normals alone, but for the seed."""
        embedding = self.embedding_stages, self.pooling, self.most_embeddings
        patches = self.patch_stages, self.patch_grid, self.neighbourhood, self.whitening, self.ridge
        references = self.reference_candidates, self.reference_share, self.most_references, self.coreset_width
        return *embedding, *patches, *references


# Of an embedding, of patches (the last stage at stride 16), of PatchCore's patches, and of cells (stride 8).
_RESNET = (("layer1", "layer2", "layer3", "layer4"), ("layer3",), ("layer2", "layer3"), "layer2")
_STAGES = {
    "efficientnet_lite0": (
        ("blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6"),
        ("blocks.4",),
        ("blocks.2", "blocks.4"),
        "blocks.2",
    ),
    "resnet18": _RESNET,
    "resnet50": _RESNET,
    "wide_resnet50_2": _RESNET,
}


def recipe_of(backbone: str, settings: Settings) -> Recipe:
    """The recipe of an arm with a backbone of `pipeline.backbones.spec`; every default is ours: docs/method.md."""
    if isinstance(settings, PatchCoreSettings):
        return _patchcore(backbone, settings)
    if isinstance(settings, FinetuneSettings):
        alone = recipe_of(backbone, TrainSettings(negatives="none"))
        return replace(alone, scorers=("finetuned", "patches"), members=(), deciding_score="finetuned")
    embedding, patches, _, cells = _STAGES[backbone]
    return Recipe(
        embedding_stages=embedding,
        pooling=("mean", "deviation", "quadrants"),
        patch_stages=patches,
        patch_grid=patches[-1],
        neighbourhood=3,
        whitening="ridge",
        ridge=0.03,
        # The time of a coreset grows with the product of candidates and references.
        reference_candidates=100_000,
        reference_share=1.0,
        most_references=settings.coreset,
        coreset_width=128,
        # The time of the Gaussian grows with the square of it.
        most_embeddings=2000,
        cell_grid=cells,
        logit_quantile=0.99,
        logit_weight=2.0,
        trusted_from=0.95,
        map_reach=2.0,
        top_share=0.02,
        blur=4 / 224,  # PatchCore's
        scorers=("gaussian", "patches", *(("cells", "localiser") if settings.trains else ())),
        members=("gaussian", "cells") if settings.trains else ("gaussian", "patches"),
        control=("gaussian", "patches") if settings.trains else (),
        deciding_score=settings.scorer,
    )


def _patchcore(backbone: str, settings: PatchCoreSettings) -> Recipe:
    """PatchCore (Roth et al., CVPR 2022, arXiv 2106.08265): its stages and coreset, the largest cell, nothing learned.

    Without the paper's re-weighting of the image's score by the neighbours of the nearest, which the authors'
    published code leaves out as well. whitened: as MH-PatchCore (arXiv 2605.27748), principal directions of 99 % of the
    variance, shrunk and whitened, and a small coreset, here of a sample of the patches.
    """
    stages = _STAGES[backbone][2]
    arm = "patchcore-whitened" if settings.whitened else "patchcore"
    return replace(
        recipe_of(backbone, TrainSettings(negatives="none")),
        embedding_stages=(),
        patch_stages=stages,
        patch_grid=stages[0],
        cell_grid=stages[0],
        whitening="pca" if settings.whitened else "none",
        reference_candidates=100_000 if settings.whitened else None,
        reference_share=settings.coreset,
        most_references=None,
        top_share=0.0,
        scorers=(arm,),
        members=(),
        deciding_score=arm,
    )
