from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SmallCache, invoke
from numpy.typing import NDArray

from pipeline.workers.execution import Execution
from train.detector import Detector
from train.run import open_run
from train.settings import SCORERS, FinetuneSettings, PatchCoreSettings, Settings, TrainSettings
from train.training import train

QUICK = TrainSettings(steps=1, batch_size=2, crop=32, coreset=30, head_lr=0.01)
ARMS: dict[str, Settings] = {
    "cutswap": QUICK,
    "untrained": replace(QUICK, negatives="none"),
    **{scorer: replace(QUICK, scorer=scorer) for scorer in SCORERS},
    "sum of untrained": replace(QUICK, negatives="none", scorer="sum"),
    "patchcore": PatchCoreSettings(coreset=0.05),
    "patchcore-whitened": PatchCoreSettings(coreset=0.05, whitened=True),
    "finetuned": FinetuneSettings(steps=1, batch_size=2),
}


# One of them in the fast tests: each is traced for seconds.
@pytest.mark.parametrize(
    "arm", ["untrained", *(pytest.param(arm, marks=pytest.mark.slow) for arm in ARMS if arm != "untrained")]
)
def test_the_program_of_every_arm_gives_what_its_detector_predicts(
    arm: str, small_cache: SmallCache, photos: NDArray[np.uint8], tmp_path: Path
) -> None:
    train(open_run(small_cache.store, tmp_path, ARMS[arm], categories=["poly"], execution=Execution(device="cpu")))
    out = tmp_path / "detector.pt2"
    done = invoke("export", "model", tmp_path, "--out", out)
    assert done.exit_code == 0, done.output
    program = torch.export.load(out).module()
    detector = Detector.load(tmp_path, "cpu")
    assert (detector.fitted.localiser is not None) is (arm in ("cutswap", *SCORERS))
    assert arm not in SCORERS or detector.recipe.deciding_score == arm
    expected = detector.predict(list(photos))
    for part in (slice(6), slice(1)):
        scores, maps = program(torch.from_numpy(photos[part]).permute(0, 3, 1, 2))
        assert scores.dtype == maps.dtype == torch.float32
        wanted = expected[part]
        told = [round(score, 4) for score in scores.tolist()]
        np.testing.assert_allclose(scores.numpy(), told, rtol=1e-7)
        # It adds in another order: the last of four decimals may be the next one.
        apart = np.abs(np.array(told) - [p.score for p in wanted])
        assert apart.max() < 1.5e-4 and (apart < 1e-9).mean() >= 0.5
        assert [score > p.threshold for score, p in zip(told, wanted, strict=True)] == [p.anomalous for p in wanted]
        np.testing.assert_allclose(maps.numpy(), np.stack([p.map for p in wanted]), rtol=1e-4, atol=1e-4)
