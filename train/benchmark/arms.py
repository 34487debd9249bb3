"""The arms of a benchmark: what each is trained with, and the run folder that it is trained into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from train.benchmark.comparison import arm_folder
from train.run import Run, open_run
from train.settings import BenchmarkSettings, FinetuneSettings, PatchCoreSettings, Settings, TrainSettings

# A quick look checks that everything works here. Its metrics mean nothing.
QUICK = "QUICK LOOK, no measurement"
_QUICK_STEPS = 5
QUICK_NORMALS = 64
_QUICK_TESTS = 12
_QUICK_SIZE = 128


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: arms and seeds on some or all categories of a data set; see `run_benchmark`.

    store: the cache; it is made first where it is not there or not finished. image_root: of the data set, None for its
    default. command: what was typed, for `results.md`.
    """

    dataset: str
    store: str
    out: Path
    asked: BenchmarkSettings
    execution: Execution
    categories: tuple[str, ...] = ()
    image_root: str | None = None
    command: str = ""

    @property
    def seeds(self) -> range:
        """The seeds, counted from 0."""
        return range(self.asked.seeds or (1 if self.asked.quick else 3))

    @property
    def training(self) -> TrainSettings:
        """The settings that all trained arms share."""
        return TrainSettings(steps=_QUICK_STEPS) if self.asked.quick else TrainSettings()

    def settings(self, arm: str) -> Settings:
        """The training with the arm's negatives, or settings of its own with the same split of the normals."""
        if arm == "patchcore":
            return PatchCoreSettings()
        if arm == "patchcore-whitened":
            return PatchCoreSettings(coreset=0.02, whitened=True)
        if arm == "finetuned":
            return FinetuneSettings(steps=_QUICK_STEPS) if self.asked.quick else FinetuneSettings()
        return replace(self.training, negatives="none" if arm == "untrained" else arm)

    @property
    def cache_settings(self) -> PrecomputeSettings:
        """The settings of a new cache."""
        return PrecomputeSettings(
            image_size=self.asked.image_size or (_QUICK_SIZE if self.asked.quick else PrecomputeSettings().image_size)
        )

    @property
    def note(self) -> str:
        """The warning that stands with every result of a quick look, else empty."""
        what = f"{_QUICK_STEPS} steps, at most {_QUICK_TESTS} test images per label"
        return f"{QUICK}: {what}" if self.asked.quick else ""


def open_arm(benchmark: Benchmark, arm: str, categories: Sequence[str] | None = None) -> Run:
    """The run of an arm, of some categories or those that the benchmark compares; keeps its finished cells."""
    run = open_run(
        benchmark.store,
        arm_folder(benchmark.out, arm).path,
        benchmark.settings(arm),
        categories=benchmark.categories if categories is None else categories,
        execution=benchmark.execution,
        image_root=benchmark.image_root,
    )
    return run.with_fewer_tests(_QUICK_TESTS) if benchmark.asked.quick else run
