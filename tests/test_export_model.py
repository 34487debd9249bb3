"""Exported programs agree with `predict`: torch.export, ONNX and OpenVINO, of every arm."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO, SmallCache, invoke
from numpy.typing import NDArray

from pipeline.data.images import Decoding, read_rgb
from pipeline.errors import RunError, UserError
from pipeline.workers.execution import Execution
from train.deploy import export
from train.deploy.onnx_file import onnx_model
from train.deploy.openvino_file import save_openvino
from train.deploy.program import OUTPUTS, make_program
from train.detector import Detector
from train.prediction import Prediction
from train.run import open_run
from train.settings import SCORERS, FinetuneSettings, PatchCoreSettings, Settings, TrainSettings
from train.training import train

QUICK = TrainSettings(steps=1, batch_size=2, crop=32, coreset=30, head_lr=0.01)
# The default scorer of "cutswap" is "largest".
ARMS: dict[str, Settings] = {
    "untrained": replace(QUICK, negatives="none"),
    "cutswap": QUICK,
    **{scorer: replace(QUICK, scorer=scorer) for scorer in SCORERS if scorer != "largest"},
    "sum of untrained": replace(QUICK, negatives="none", scorer="sum"),
    "patchcore": PatchCoreSettings(coreset=0.05),
    "patchcore-whitened": PatchCoreSettings(coreset=0.05, whitened=True),
    "finetuned": FinetuneSettings(steps=1, batch_size=2),
}
# Their exports to ONNX take a minute each; the other scorers are tried as .pt2.
EVERY_FORMAT = ("untrained", "cutswap", "patchcore", "patchcore-whitened", "finetuned")
# Scores, maps and verdicts of images (B,3,H,W) uint8.
Program = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]

pytestmark = pytest.mark.slow  # exports take seconds each


def trained(cache: SmallCache, out: Path, arm: str, category: str) -> Detector:
    train(open_run(cache.store, out, ARMS[arm], categories=[category], execution=Execution(device="cpu")))
    return Detector.load(out, "cpu")


def in_torch(file: Path) -> Program:
    program = torch.export.load(file).module()
    return lambda images: [output.numpy() for output in program(torch.from_numpy(images))]


def in_onnxruntime(file: Path) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == [*OUTPUTS]
    return lambda images: list(session.run(None, {"images": images}))


def in_openvino(file: Path) -> Program:
    import openvino

    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert [output.get_any_name() for output in compiled.outputs][1:] == [*OUTPUTS[1:]]
    assert "scores" in compiled.outputs[0].get_names()
    return lambda images: [compiled({"images": images})[name] for name in OUTPUTS]


RUNTIMES = {"pt2": in_torch, "onnx": in_onnxruntime, "xml": in_openvino}


def assert_agrees(program: Program, images: NDArray[np.uint8], expected: list[Prediction]) -> None:
    """In batches of several images and of one: scores to the last of four decimals, and every verdict."""
    for size, count in ((len(images) // 2, len(images)), (1, 5)):
        batches = [images[begin : begin + size].transpose(0, 3, 1, 2).copy() for begin in range(0, count, size)]
        scores, maps, anomalous = map(np.concatenate, zip(*map(program, batches), strict=True))
        wanted = expected[:count]
        assert (scores.dtype, maps.dtype, anomalous.dtype) == (np.float32, np.float32, np.bool_)
        told = np.array([round(float(score), 4) for score in scores])
        np.testing.assert_allclose(scores, told, rtol=1e-7)
        # It adds in another order: the last decimal may be the next one. Of a score above 100, float32 has fewer.
        np.testing.assert_allclose(told, [p.score for p in wanted], rtol=1e-6, atol=1.0001e-4)
        assert anomalous.tolist() == [p.anomalous for p in wanted]
        assert anomalous.tolist() == [score > p.threshold for score, p in zip(told, wanted, strict=True)]
        # Of a normal that was fitted to, the map is 0.
        largest = max(float(p.map.max()) for p in expected)
        np.testing.assert_allclose(maps, np.stack([p.map for p in wanted]), rtol=1e-4, atol=1e-5 * largest)


@pytest.fixture(scope="module")
def hundred(elpv: Mapping[str, tuple[list[Path], list[Path]]]) -> NDArray[np.uint8]:
    """(100,64,64,3): normal cells, of which the first were trained on, and defective ones."""
    files = [*elpv["mono"][0][40:90], *elpv["mono"][1][:30], *elpv["poly"][1][:20]]
    return np.stack([read_rgb(file, Decoding(64, "stretch", None)) for file in files])


def calibrated_amid(detector: Detector, images: NDArray[np.uint8]) -> Detector:
    """With another threshold: in the widest gap amid the scores of these images."""
    scores = np.sort([p.score for p in detector.predict(list(images))])[30:70]
    widest = int(np.argmax(np.diff(scores)))
    threshold = float(scores[widest : widest + 2].mean())
    return replace(detector, calibration=replace(detector.calibration, threshold=threshold))


@pytest.mark.parametrize("arm", ARMS)
def test_every_format_of_every_arm_gives_what_predict_gives_of_100_images(
    arm: str, small_cache: SmallCache, hundred: NDArray[np.uint8], tmp_path: Path
) -> None:
    detector = trained(small_cache, tmp_path, arm, "mono")
    assert (detector.fitted.localiser is not None) is (arm in ("cutswap", *SCORERS))
    assert arm not in SCORERS or detector.recipe.deciding_score == arm
    detector = calibrated_amid(detector, hundred)
    expected = detector.predict(list(hundred))
    assert 20 < sum(p.anomalous for p in expected) < 80
    program = make_program(detector)
    torch.export.save(program, tmp_path / "detector.pt2")
    suffixes = ["pt2"]
    if arm in EVERY_FORMAT:
        model = onnx_model(program, {})  # once for both: it takes most of the time
        (tmp_path / "detector.onnx").write_bytes(model.SerializeToString())
        save_openvino(model, {}, tmp_path / "detector.xml")
        suffixes += ["onnx", "xml"]
    for suffix in suffixes:
        assert_agrees(RUNTIMES[suffix](tmp_path / f"detector.{suffix}"), hundred, expected)


@pytest.fixture(scope="module")
def run(small_cache: SmallCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the untrained arm, of two categories."""
    out = tmp_path_factory.mktemp("run")
    train(open_run(small_cache.store, out, ARMS["untrained"], execution=Execution(device="cpu")))
    return out


@pytest.mark.parametrize("suffix", ["pt2", "onnx", "xml"])
def test_a_file_and_its_description_say_the_same_and_agree_with_predict(
    suffix: str, run: Path, photos: NDArray[np.uint8], tmp_path: Path
) -> None:
    out = tmp_path / "new" / f"detector.{suffix}"
    done = invoke("export", "model", run, "--category", "poly", "--out", out)
    assert done.exit_code == 0, done.output
    assert str(out) in done.stdout and done.stderr == ""
    beside = {"pt2": [], "onnx": [], "xml": ["detector.bin"]}[suffix]
    files = [out.name, f"{out.name}.json", *beside]
    assert sorted(path.name for path in out.parent.iterdir()) == sorted(files)
    for name in files:
        assert str(REPO).encode() not in (out.parent / name).read_bytes(), "it names folders of this machine"
    detector = Detector.load(run / "poly", "cpu")
    described = json.loads((out.parent / f"{out.name}.json").read_text())
    versions = described.pop("versions")
    assert described == {
        "image_size": 64,
        "resize": "stretch",
        "interpolation": "bilinear",
        "channels": "RGB",
        "scale": {"integer": 65535, "real": 1.0},
        "threshold": round(detector.threshold, 4),
        "map_threshold": round(detector.calibration.map_threshold, 4),
        "region": None,
        "category": "poly",
        "scorer": "largest",
        "detector_sha256": hashlib.sha256((run / "poly/seed-0/detector.pt").read_bytes()).hexdigest(),
    }
    assert versions["torch"] == torch.__version__
    assert inside(out) == described | {"versions": versions}
    assert_agrees(RUNTIMES[suffix](out), photos, detector.predict(list(photos)))


def inside(file: Path) -> dict[str, Any]:
    """The description in the file itself."""
    if file.suffix == ".pt2":
        held = {"description.json": ""}
        torch.export.load(file, extra_files=held)
        return dict(json.loads(held["description.json"]))
    if file.suffix == ".onnx":
        import onnxruntime

        texts = dict(onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map)
    else:
        import openvino

        found = openvino.Core().read_model(file).get_rt_info("model_info").astype(dict)
        texts = {key: value.astype(str) if hasattr(value, "astype") else value for key, value in found.items()}
    as_they_are = ("resize", "interpolation", "channels", "category", "scorer", "detector_sha256")
    return {key: text if key in as_they_are else json.loads(text) for key, text in texts.items()}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--out", "detector.bin"), "detector.bin tells no format"),
        (("--out", "detector.onnx", "--format", "openvino"), "is no name for --format openvino: end it in .xml"),
        (("--out", "detector", "--format", "openvino"), "is no name for --format openvino: end it in .xml"),
        (("--out", "detector.pt2", "--format", "onnx"), "is no name for --format onnx: end it in .onnx"),
        (("--category", "mono5"), "has no category mono5"),
        ((), "several categories"),
    ],
)
def test_what_cannot_be_exported_is_one_line(given: tuple[str, ...], said: str, run: Path, tmp_path: Path) -> None:
    with chdir(tmp_path):
        done = invoke("export", "model", run, *given)
    assert done.exit_code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "missing", "extra"),
    [
        (("--out", "a.onnx"), "onnxscript", "onnx"),
        (("--format", "openvino"), "openvino", "openvino"),
        (("--out", "b", "--format", "onnx"), "onnx", "onnx"),
    ],
)
def test_a_format_whose_package_is_missing_says_what_to_install(
    given: tuple[str, ...], missing: str, extra: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == missing else name)
    with chdir(tmp_path):
        done = invoke("export", "model", run / "poly", *given)
    assert done.exit_code == 2
    assert done.stderr == f"Error: --format {extra} needs {missing}: pip install 'cutswap[{extra}]'\n"
    assert not any(tmp_path.iterdir())


def test_a_failed_export_leaves_the_earlier_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("detector.pt2", "detector.pt2.json"):
        (tmp_path / name).write_text("earlier")
    monkeypatch.setattr(export, "make_program", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.export_model(run / "poly", tmp_path / "detector.pt2")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "detector.pt2": "earlier",
        "detector.pt2.json": "earlier",
    }


def test_a_place_that_cannot_be_written_is_told_before_the_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "make_program", lambda _: 1 / 0)
    (tmp_path / "a.pt2.json").mkdir()
    (tmp_path / "file").touch()
    for out, why in (("a.pt2", "a.pt2.json"), ("file/b.pt2", "file")):
        done = invoke("export", "model", run / "poly", "--out", tmp_path / out)
        assert done.exit_code in (1, 2) and why in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_detector_too_large_for_onnx_is_refused_before_it_is_converted() -> None:
    large = torch.empty(2**29, device="meta")
    program: Any = SimpleNamespace(state_dict={"weight": large}, tensor_constants={"coreset": large})
    with pytest.raises(UserError, match=r"4\.0 GiB are more than ONNX holds in a file: give --format pt2"):
        onnx_model(program, {})


def test_openvino_files_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "small", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    save_openvino(model, {"key": "value"}, tmp_path / "a.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.xml"]
    with pytest.raises(RunError, match=r"b\.xml could not be written"):
        save_openvino(model, {}, tmp_path / "a.xml" / "b.xml")
