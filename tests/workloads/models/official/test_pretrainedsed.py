"""Weights under PretrainedSED's names give the frame logits that its own code gave, from the waveform on."""

from typing import Any

import pytest
import torch

from tests.efficientat import case
from tests.official import waveform
from workloads.config.architectures import FrameMN
from workloads.config.recipe import FrontEnd
from workloads.models.official.pretrainedsed import convert
from workloads.models.profiles import TimeGrid, time_grid
from workloads.models.tagger import build_tagger

RATE, CLOSE = 16_000, 2e-5
WIDTHS = {"frame_mn06": 0.6, "frame_mn10": 1.0}


@pytest.mark.parametrize("name", WIDTHS)
def test_frame_logits_are_those_of_the_official_code(name: str) -> None:
    state, expected_BCP = case(name)  # of the first 5 tags at every tenth frame
    converted = convert(state)
    assert converted.model.arch == FrameMN(family="frame_mn", width=WIDTHS[name])
    assert converted.model.front_end == FrontEnd(kind="pretrainedsed128")
    assert (converted.num_classes, converted.clip_seconds) == (447, 10.0)
    assert converted.dropped == ("weak_head.weight", "weak_head.bias")
    tags = tuple(str(number) for number in range(447))
    about: dict[str, Any] = {"labels": "multi", "clip_seconds": 10.0, "clip_rate": RATE, "seed": 0}
    tagger = build_tagger(converted.model, name="official", tags=tags, **about)
    tagger.load_initial(converted.weights)
    assert tagger.newly_initialised == ()
    with torch.no_grad():
        frames_BPC = tagger.eval().outputs(tagger.front_end(waveform(10, RATE))).frames_BPC
    assert frames_BPC is not None
    assert frames_BPC.shape == (2, 250, 447)
    torch.testing.assert_close(frames_BPC[:, ::10, :5].transpose(1, 2), expected_BCP, rtol=0, atol=CLOSE)
    assert (expected_BCP[0] - expected_BCP[1]).std() > 0.1, "the comparison is not of biases alone"
    assert expected_BCP.std(2).mean() > 0.1, "nor of clips alone"
    assert time_grid(tagger, 250) == TimeGrid(-0.015, 0.04, 250)


def test_what_is_no_such_network_is_refused() -> None:
    state = case("frame_mn06").state
    weak_alone = {name: tensor for name, tensor in state.items() if not name.startswith("strong_head.")}
    with pytest.raises(ValueError, match=r"strong_head.weight is missing"):
        convert(weak_alone)
    with pytest.raises(ValueError, match=r"unknown: seq_model.gru.weight"):
        convert(state | {"seq_model.gru.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"features.15.block.0.0.weight is missing"):
        convert({"strong_head.weight": torch.ones(2, 2)})
