"""The commands that use a detector: they need a run folder, and neither a cache nor a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from pipeline.commands import Command
from pipeline.options import options_of
from pipeline.path_types import LocalPath, Place
from pipeline.settings_file import settings_file
from pipeline.workers.execution import Execution


@click.command(cls=Command, epilog="Stopped: the table and overlays of an earlier run stay as they were.")
@click.argument("run", type=LocalPath(exists=True))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE_OR_FOLDER...", type=Place())
@click.option("--out", type=LocalPath(file_okay=False), default=Path("predictions"), help="For table and overlays.")
@click.option("--pictures", type=click.Choice(("all", "anomalous", "none")), default="all", help="Overlays to write.")
@options_of(Execution, "execution", only=("device", "bad_images", "max_pixels"))
@settings_file
def predict(run: Path, images: Sequence[str], out: Path, pictures: str, execution: Execution) -> None:
    """Score images with the detector of the run folder RUN; it needs no cache."""
    from train.deploy.predict import predict as score

    found = score(run, images, out, execution, pictures=pictures)
    for line in (*(note.line for note in found.left_out), *(f"skipped: {bad}" for bad in found.bad)):
        click.echo(line, err=True)
    said = f"{sum(bool(line.anomalous) for line in found.scored)} of {len(found.scored)} images anomalous"
    drawn = sum(line.drawn for line in found.lines)
    click.echo(f"{out / 'predictions.csv'}: {said}; {drawn} overlays in {out / 'overlays'}")


@click.command("model", cls=Command, epilog="Stopped: earlier files stay as they were.")
@click.argument("run", type=LocalPath(exists=True))
@click.option("--out", type=LocalPath(), help="The file to write; FILE.json comes beside it.  [default: detector.pt2]")
@click.option(
    "--format",
    "form",
    type=click.Choice(("pt2", "onnx", "openvino")),
    help="By default as --out ends: .pt2, .onnx, .xml.",
)
@click.option("--category", help="Of a run that has several.")
def export_model(run: Path, out: Path | None, form: str | None, category: str | None) -> None:
    """Write a run's detector as one program: uint8 images (B,3,H,W) to scores, anomaly maps and verdicts."""
    from train.deploy.export import FORMATS
    from train.deploy.export import export_model as write

    out = out or Path(f"detector{FORMATS[form or 'pt2']}")
    runs_it = {
        "pt2": f"torch.export.load({str(out)!r}).module()",
        "onnx": f"onnxruntime.InferenceSession({str(out)!r})",
        "openvino": f"openvino.Core().compile_model({str(out)!r}, 'CPU', {{'INFERENCE_PRECISION_HINT': 'f32'}})",
    }
    click.echo(f"{out} and {out.name}.json: {runs_it[write(run, out, form, category)]} runs it")
