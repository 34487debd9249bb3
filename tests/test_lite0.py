"""Our EfficientNet-Lite0 is timm's, bit for bit: a detector is trained with the one and loaded with the other."""

import subprocess
import sys

import pytest
import torch
from conftest import REPO

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import bare_backbone, load_backbone


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (256, 256)])
def test_it_computes_what_timms_does(size: tuple[int, int]) -> None:
    theirs, ours = load_backbone("efficientnet_lite0"), bare_backbone("efficientnet_lite0")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for mine, yours in ((ours, theirs), (for_inference(ours), for_inference(theirs))):
            x = mine.normalise(images)
            names = mine.stage_names
            for a, b in zip(mine.activations(x, names), yours.activations(x, names), strict=True):
                assert torch.equal(a, b)
            deepest = mine.activations(x, names[-1:])[0]
            assert torch.equal(mine.head(deepest), yours.head(deepest))


@pytest.mark.slow
def test_a_detector_is_loaded_without_timm_and_without_the_compiler_of_torch() -> None:
    code = (
        "import sys; from pipeline.backbones.load import bare_backbone; from train import Detector\n"
        "bare_backbone('efficientnet_lite0')\n"
        "assert not {'timm', 'torchvision', 'torch._dynamo'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)
