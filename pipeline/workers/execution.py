"""How a run is carried out, whatever it computes; validated once and passed on as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.data.pixels import MOST_PIXELS
from pipeline.device import DEVICES
from pipeline.errors import UserError
from pipeline.setting import POSITIVE, Bounds, check, setting

SCHEDULERS = ("threads", "processes", "cluster", "cuda")
LOCAL = ("threads", "processes")
# Those whose processes we start.
OWN_PROCESSES = ("processes", "cluster", "cuda")


@dataclass(frozen=True)
class Execution:
    """Where tasks run and what they do with a bad image; on a CPU no cache depends on any of it."""

    scheduler: str = setting(
        "threads", "Where tasks run: here, or on a Dask cluster.", metavar="|".join((*SCHEDULERS, "tcp://HOST:PORT"))
    )
    workers: int | None = setting(
        None,
        "Default one per core, with cuda one per GPU; a cluster at an address has its own.",
        within=Bounds(1, 4096),
        type=int,
    )
    dask_report: Path | None = setting(
        None,
        "Write Dask's performance report of the run (HTML); only on a cluster whose scheduler has bokeh.",
        metavar="FILE",
        type=Path,
    )
    device: str = setting("auto", "auto uses CUDA where there is a GPU.", choices=DEVICES)
    gpu_batch: int = setting(64, "Images that a GPU computes at once; a CPU computes one at a time.", within=POSITIVE)
    max_pixels: int = setting(MOST_PIXELS, "Images of more pixels are refused.", within=POSITIVE)
    bad_images: str = setting("stop", "At an unreadable image: stop, or skip and name it.", choices=("stop", "skip"))

    def __post_init__(self) -> None:
        check(self)
        if self.scheduler not in SCHEDULERS and not self.scheduler.startswith(("tcp://", "tls://")):
            known = ", ".join(SCHEDULERS)
            raise UserError(f"unknown scheduler {self.scheduler!r}: give {known} or tcp://HOST:PORT")
        if self.dask_report is not None and self.scheduler in LOCAL:
            others = ", ".join(name for name in SCHEDULERS if name not in LOCAL)
            raise UserError(f"--dask-report: --scheduler {self.scheduler} makes none; give {others} or tcp://HOST:PORT")
