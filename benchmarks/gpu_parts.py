"""The parts of `gpu.py`: each prints its metrics as soon as they are known, and runs in a process of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import naive
import numpy as np
import torch
from common import CLI, CORES, decode, precompute_folder, run_command, seconds
from precompute import gradcam_one_pass, kmeans_by_map
from torch import Tensor

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone, load_backbone
from pipeline.backbones.spec import choose_stages
from pipeline.cache.category import CachedCategory
from pipeline.clusters import cluster_maps
from pipeline.saliency import layercam, scale_maps
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution

BACKBONE = "efficientnet_lite0"


@dataclass(frozen=True)
class Plan:
    """What a part knows: the folder that holds the images and takes all results, sizes, and the seconds it may take."""

    work: Path
    device: str
    repeats: int
    tiny: bool
    seconds: float = 0.0

    @property
    def settings(self) -> PrecomputeSettings:
        """The defaults, or tiny images."""
        size = 64 if self.tiny else PrecomputeSettings().image_size
        return PrecomputeSettings(image_size=size, stages=choose_stages(BACKBONE))

    @property
    def large(self) -> int:
        """The side of the images of which decoding is measured, in pixels."""
        return 128 if self.tiny else 1024

    def paths(self, kind: str) -> list[Path]:
        """The images of one of the folders that `prepare` fills."""
        return sorted((self.work / kind / "cells" / "train" / "good").iterdir())

    def precompute(self, kind: str) -> None:
        """Precompute from one of these folders to a new cache."""
        precompute_folder(self.work / kind, self.settings, Execution(device=self.device))


@dataclass(frozen=True)
class Action:
    """Something to time, and the number of images (or maps) that it takes each time."""

    name: str
    run: Callable[[], object]
    count: int
    unit: str = "images/s"


def say(line: str) -> None:
    print(line, flush=True)


def show(name: str, values: Sequence[float], unit: str) -> None:
    runs = f"{len(values)} runs" if len(values) > 1 else "1 run"
    say(f"{name}: {median(values):.4g} {unit} ({min(values):.4g} to {max(values):.4g}, {runs})")


def compare(plan: Plan, ours: Action, *others: Action) -> None:
    """Show the rate of each action, and those of the first over the others.

    After a run of each that does not count, they run in turn until the repeats or half the seconds of the part are up.
    """
    actions = (*others, ours)
    if not plan.tiny:
        for action in actions:
            action.run()
    rates: dict[str, list[float]] = {action.name: [] for action in actions}
    stop = time.monotonic() + plan.seconds / 2
    while len(rates[ours.name]) < plan.repeats and (not rates[ours.name] or time.monotonic() < stop):
        for action in actions:
            rates[action.name].append(action.count / seconds(action.run))
    for action in actions:
        show(action.name, rates[action.name], action.unit)
    for other in others:
        ratios = [mine / theirs for mine, theirs in zip(rates[ours.name], rates[other.name], strict=True)]
        show(f"{ours.name} over {other.name}", ratios, "times")


def network(plan: Plan) -> None:
    """Precompute of decoded images over the network: forward pass and gradients of the activations, nothing else."""
    name = torch.cuda.get_device_name() if plan.device == "cuda" else "CPU"
    say(f"{name}, {CORES} cores, torch {torch.__version__}")
    plain, images = backbone_and_images(plan)
    folded = for_inference(plain)

    def bare(backbone: Backbone, images: Tensor) -> None:
        for part in images.split(Execution().gpu_batch):
            layercam(backbone, backbone.normalise(part.to(plan.device)), plan.settings.stages)
        wait(plan)

    # As anyone loads a network and images, and as the product does.
    contiguous, last = images.contiguous(), images.contiguous(memory_format=torch.channels_last)
    compare(
        plan,
        Action("precompute, images decoded", lambda: plan.precompute("decoded"), len(images)),
        Action("plain bare network", lambda: bare(plain, contiguous), len(images)),
        Action("folded bare network", lambda: bare(folded, last), len(images)),
    )


def decoding(plan: Plan) -> None:
    """Precompute of large PNG files over only decoding them."""
    paths = plan.paths("large")
    ours = Action(f"precompute, {plan.large} px PNG", lambda: plan.precompute("large"), len(paths))
    compare(plan, ours, Action("only decoding", lambda: decode(paths, plan.settings.image_size), len(paths)))


def script(plan: Plan) -> None:
    """Precompute over the plain script of `naive.py`, which gets few of the images."""
    paths = plan.paths("given")
    few = paths[: max(4, len(paths) // 16)]
    trained = load_backbone(BACKBONE).to(plan.device).requires_grad_(True)
    ours = Action("precompute, images as given", lambda: plan.precompute("given"), len(paths))
    theirs = Action("plain script", lambda: naive.run(trained, few, plan.settings, plan.work / "naive"), len(few))
    compare(plan, ours, theirs)


def maps(plan: Plan) -> None:
    """LayerCAM over grad-cam's one pass in the same batches, and k-means over scikit-learn; of one chunk."""
    plain, images = backbone_and_images(plan)
    folded, stages = for_inference(plain), plan.settings.stages
    x = plain.normalise(images[: CachedCategory.rows_per_chunk].to(plan.device))
    last, trained = x.contiguous(memory_format=torch.channels_last), load_backbone(BACKBONE).requires_grad_(True)
    trained.to(plan.device)

    def explain() -> list[Tensor]:
        found, _ = layercam(folded, last, stages)
        wait(plan)
        return found

    theirs = Action("grad-cam, one pass", lambda: gradcam_one_pass(trained, x, len(x)), len(x))
    compare(plan, Action("LayerCAM", explain, len(x)), theirs)
    chunk = scale_maps(explain(), plan.settings.map_size).flatten(0, 1)
    values = chunk.cpu().numpy()

    def cluster() -> None:
        cluster_maps(chunk, plan.settings.clusters)
        wait(plan)

    sklearn = Action("scikit-learn, n_init=1", lambda: kmeans_by_map(values), len(values), "maps/s")
    compare(plan, Action("k-means", cluster, len(values), "maps/s"), sklearn)


def train(plan: Plan) -> None:
    """The commands `precompute` and `train`; steps/s without all that comes before and after the steps."""
    store, (few, many) = plan.work / "cache.zarr", (1, 4) if plan.tiny else (10, 100)
    size = ("--image-size", plan.settings.image_size)
    images = ("--dataset", "folder", "--root", plan.work / "given")
    count = len(plan.paths("given"))
    show(
        f"precompute, {count} images, whole command",
        [command(plan, "precompute", *images, "--store", store, *size)],
        "s",
    )

    def steps(number: int) -> float:
        # Every run starts again, and the last one is what `predict` loads.
        shutil.rmtree(plan.work / "run", ignore_errors=True)
        return command(plan, "train", "--store", store, "--out", plan.work / "run", "--steps", number)

    spent = steps(few), steps(many)
    show(f"train, {count} normals, {many} steps, whole command", [spent[1]], "s")
    show_steady("train", many - few, spent, "steps/s")


def predict(plan: Plan) -> None:
    """The command `predict` with and without pictures; steady: without the start of the process."""
    if not list((plan.work / "run").rglob("detector.pt")):
        say("predict: skipped, train made no detector")
        return
    paths = plan.paths("given")
    few = paths[: max(1, len(paths) // 16)]
    for kind in ("all", "none"):
        name = f"predict, pictures {kind}"

        def score(images: Sequence[Path], kind: str = kind) -> float:
            out = plan.work / "predictions"
            shutil.rmtree(out, ignore_errors=True)
            return command(plan, "predict", plan.work / "run", *images, "--out", out, "--pictures", kind)

        spent = score(few), score(paths)
        show(f"{name}, {len(paths)} images, whole command", [len(paths) / spent[1]], "images/s")
        show_steady(name, len(paths) - len(few), spent, "images/s")


def command(plan: Plan, *arguments: object) -> float:
    """Seconds of `cli.py ARGUMENTS` on the device."""
    return run_command([*CLI, *arguments, "--device", plan.device], plan.work).seconds


def show_steady(name: str, more: int, spent: tuple[float, float], unit: str) -> None:
    """The rate at which a longer command does what it does more than a shorter one."""
    shorter, longer = spent
    if longer > shorter:
        show(f"{name}, steady", [more / (longer - shorter)], unit)
    else:
        say(f"{name}, steady: skipped, too few {unit.partition('/')[0]} to tell")


def backbone_and_images(plan: Plan) -> tuple[Backbone, Tensor]:
    """The plain network on the device, and the decoded images (N,3,S,S) uint8 in memory."""
    images = np.stack(decode(plan.paths("decoded"), plan.settings.image_size))
    return load_backbone(BACKBONE).to(plan.device), torch.from_numpy(images).permute(0, 3, 1, 2)


def wait(plan: Plan) -> None:
    """Until the device has finished; the other actions end with results in files or on the host."""
    if plan.device == "cuda":
        torch.cuda.synchronize()


# The parts in the order of their worth, each with its largest number of seconds.
PARTS: dict[str, tuple[Callable[[Plan], None], float]] = {
    "network": (network, 75),
    "decoding": (decoding, 60),
    "script": (script, 60),
    "train": (train, 120),
    "predict": (predict, 60),
    "maps": (maps, 60),
}
