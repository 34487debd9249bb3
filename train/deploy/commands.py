"""The commands that use a detector: they need a run folder, and neither a cache nor a data set."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands import Command
from pipeline.errors import UserError
from pipeline.options import options_of
from pipeline.path_types import LocalPath, Place
from pipeline.settings_file import settings_file
from pipeline.views.console import console
from pipeline.workers.execution import Execution
from train.deploy.formats import FORMATS
from train.deploy.wanted import Wanted
from train.settings import TrainSettings

if TYPE_CHECKING:
    from train.deploy.predict import Predicted

# The status of `predict --fail-on-anomaly` where an image is anomalous.
_ANOMALY = 3


@click.command(cls=Command, epilog="Stopped: the table and overlays of an earlier run stay as they were.")
@click.argument("run", type=LocalPath(exists=True))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE_OR_FOLDER...", type=Place())
@click.option("--out", type=LocalPath(file_okay=False), default=Path("predictions"), help="For table and overlays.")
@options_of(Wanted, "wanted")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON per file, and nothing else, to stdout.")
@click.option("--fail-on-anomaly", "fail", is_flag=True, help=f"Exit {_ANOMALY} where an image is anomalous.")
@options_of(Execution, "execution", only=("device", "bad_images", "max_pixels"))
@settings_file
def predict(
    run: Path, images: Sequence[str], out: Path, wanted: Wanted, as_json: bool, fail: bool, execution: Execution
) -> None:
    """Score images with the detector of the run folder RUN; it needs no cache.

    A - in place of images reads their paths from standard input, one per line.
    """
    from train.deploy.predict import predict as score

    found = score(run, _with_those_of_stdin(images), out, execution, wanted)
    _tell(found, out, wanted, as_json=as_json)
    if fail and any(line.anomalous for line in found.lines):
        sys.exit(_ANOMALY)


def _with_those_of_stdin(images: Sequence[str]) -> list[str]:
    """The paths, and in place of "-" those that standard input has."""
    if "-" not in images:
        return list(images)
    if sys.stdin is None:
        raise UserError("- reads paths from standard input, which is closed: give image files or folders")
    # As bytes: a name need not be text, and which one is not is told.
    lines = [os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer]
    read = [line for line in lines if line.strip()]
    if not read:
        raise UserError("standard input has no path: write one per line to it, or give image files or folders")
    first = images.index("-")
    return [*images[:first], *read, *(image for image in images[first + 1 :] if image != "-")]


def _tell(found: Predicted, out: Path, wanted: Wanted, *, as_json: bool) -> None:
    """Print the outcome; as_json: on standard output a line per file, all else on standard error."""
    from train.deploy.told import drift_line, outcome_line, threshold_line, worst_table

    for line in (*(note.line for note in found.left_out), *(f"skipped: {bad}" for bad in found.bad)):
        click.echo(line, err=True)
    if as_json:
        for one in found.lines:
            click.echo(json.dumps(one.value))
    elif found.scored:
        console().print(worst_table(found.lines))
    for part in found.parts:
        click.echo(threshold_line(part), err=as_json)
        if drift := drift_line(part):
            click.echo(drift, err=True)
    click.echo(outcome_line(found, out, wanted), err=as_json)


@click.command(cls=Command, epilog="Stopped: an earlier calibration stays as it was.")
@click.argument("run", type=LocalPath(exists=True))
@click.option("--good", type=LocalPath(exists=True), required=True, metavar="DIR", help="Fresh good parts.")
@click.option("--bad", type=LocalPath(exists=True), metavar="DIR", help="Bad parts; they are only reported.")
@click.option(
    "--false-positive-rate",
    "rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=TrainSettings.false_alarms,
    help="The rate that the threshold is for.",
)
@click.option("--category", help="Of a run that has several.")
@options_of(Execution, "execution", only=("device", "bad_images", "max_pixels"))
@settings_file
def calibrate(run: Path, good: Path, bad: Path | None, rate: float, category: str | None, execution: Execution) -> None:
    """Set the threshold of the run folder RUN from fresh parts; its detector stays as it is."""
    from train.deploy.calibrate import calibrate as calibrate_by
    from train.run_folder import find_detector

    found = calibrate_by(find_detector(run, category), good, bad, rate, execution)
    for line in found.left_out:
        click.echo(line, err=True)
    for line in found.said:
        click.echo(line)


@click.command("model", cls=Command, epilog="Stopped: earlier files stay as they were.")
@click.argument("run", type=LocalPath(exists=True))
@click.option("--out", type=LocalPath(), help="The file to write; FILE.json comes beside it.  [default: detector.pt2]")
@click.option(
    "--format",
    "form",
    type=click.Choice(tuple(FORMATS)),
    help=f"By default as --out ends: {', '.join(FORMATS.values())}.",
)
@click.option("--category", help="Of a run that has several.")
def export_model(run: Path, out: Path | None, form: str | None, category: str | None) -> None:
    """Write a run's detector as one program: uint8 images (B,3,H,W) to scores, anomaly maps and verdicts."""
    from train.deploy.export import export_model as write

    out = out or Path(f"detector{FORMATS[form or 'pt2']}")
    runs_it = {
        "pt2": f"torch.export.load({str(out)!r}).module()",
        "onnx": f"onnxruntime.InferenceSession({str(out)!r})",
        "openvino": f"openvino.Core().compile_model({str(out)!r}, 'CPU', {{'INFERENCE_PRECISION_HINT': 'f32'}})",
    }
    click.echo(f"{out} and {out.name}.json: {runs_it[write(run, out, form, category)]} runs it")
