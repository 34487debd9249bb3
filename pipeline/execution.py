"""How a run is carried out, whatever it computes: validated once where it enters, passed on as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

SCHEDULERS = ("threads", "processes", "cluster", "cuda")
LOCAL = ("threads", "processes")


@dataclass(frozen=True)
class Execution:
    """Where tasks run and what they do with a bad image; on a CPU no cache depends on any of it.

    scheduler: one of `SCHEDULERS` or the tcp:// address of a Dask scheduler. workers: None takes one per core, with
    "cuda" one per GPU; an address has its own. report: the file for Dask's performance report, of a cluster only.
    device: "auto" (CUDA where there is one), "cpu" or "cuda". gpu_batch: images through a GPU at once. bad_images:
    "stop" ends the run at an image that cannot be read, "skip" leaves its row empty.
    """

    scheduler: str = "threads"
    workers: int | None = None
    report: Path | None = None
    device: str = "auto"
    gpu_batch: int = 64
    bad_images: str = "stop"

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS and not self.scheduler.startswith(("tcp://", "tls://")):
            known = ", ".join(SCHEDULERS)
            raise UserError(f"unknown scheduler {self.scheduler!r}: give {known} or tcp://HOST:PORT")
        if self.report is not None and self.scheduler in LOCAL:
            others = ", ".join(name for name in SCHEDULERS if name not in LOCAL)
            raise UserError(f"--report: --scheduler {self.scheduler} makes none; give {others} or tcp://HOST:PORT")
