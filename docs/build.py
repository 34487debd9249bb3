"""Write docs/results.md from the runs below runs/ and their caches: figures, settings, machine; `make docs`."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow", "zarr", "dask")
FIGURES = {
    "image_auroc": "image AUROC",
    "untrained_image_auroc": "untrained arm",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
}
SHOWN = ("image_size", "backbone", "negatives", "proxy", "steps", "batch_size", "backbone_lr", "scorer", "seeds")


def main() -> None:
    """Write docs/results.md, or say that there is no run to write it from."""
    runs = sorted((REPOSITORY / "runs").glob("*/results.json"))
    if not runs:
        sys.exit("no runs/*/results.json: run `cli.py train` first (the commands stand in docs/commands.md)")
    results = {path.parent.name: json.loads(path.read_text()) for path in runs}
    sections = [section(name, result) for name, result in results.items()]
    stores = dict.fromkeys(result["settings"]["store"] for result in results.values())
    sections += [f"## Maps of {store}\n\n{maps_of(store)}\n" for store in stores]
    head = (REPOSITORY / "docs" / "commands.md").read_text()
    (REPOSITORY / "docs" / "results.md").write_text("\n".join([head, machine(), *sections]))


def machine() -> str:
    """One paragraph: when, on what, with which versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    day = datetime.now(UTC).date()
    return f"Measured on {day}: {os.cpu_count()} CPU cores ({platform.machine()}), no GPU. {versions}.\n"


def section(name: str, results: dict[str, Any]) -> str:
    """A table of one run: a row a category, percent, mean ± standard error over its seeds."""
    settings = {**results["settings"]["cache"], **results["settings"]}
    described = "; ".join(f"{key.replace('_', ' ')} {settings[key]}" for key in SHOWN)
    header = ["category", "normals", "test images", *FIGURES.values(), "gde", "head"]
    rows = [
        [
            category,
            str(values["n_train"]),
            str(values["n_test"]),
            *(percent(values.get(key)) for key in FIGURES),
            *(percent(values["scorers"].get(name)) for name in ("gde", "head")),
        ]
        for category, values in results["categories"].items()
    ]
    return f"## {name}\n\n{described}.\n\n{table([header, *rows])}\n"


def maps_of(store: str) -> str:
    """What `inspect` says of the cache's maps: a row a category and stage."""
    from pipeline.inspect import summarise

    header = ["category", "stage", "top cluster, percent of the map", "centroids", "relaxed pairs, percent"]
    rows = [
        [
            category.name,
            stage.name,
            f"{100 * (stage.top_share or 0):.1f}",
            ", ".join(f"{value:.2f}" for value in stage.centroids or ()),
            f"{100 * (stage.relaxed_share or 0):.1f}",
        ]
        for category in summarise(store).categories
        for stage in category.stages
    ]
    return table([header, *rows])


def table(rows: list[list[str]]) -> str:
    """Rows, the header first, as a Markdown table."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def percent(values: list[float | None] | None) -> str:
    """Mean ± standard error of the figures of all seeds, "-" where one is missing."""
    from train.metrics import mean_and_standard_error

    defined = [value for value in values or () if value is not None]
    if not defined or len(defined) < len(values or ()):
        return "-"
    mean, error = mean_and_standard_error(defined)
    return f"{100 * mean:.2f}" + (f" ± {100 * error:.2f}" if error is not None else "")


if __name__ == "__main__":
    main()
