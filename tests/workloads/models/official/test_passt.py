"""PaSST against the logits of its official code for the same weights and waveform, front end included."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.official import keyed_state, waveform
from workloads.config.architectures import PaSST
from workloads.config.recipe import FrontEnd, Model
from workloads.models.catalog import CATALOG
from workloads.models.families import adapt_weights, build_backbone
from workloads.models.official import passt
from workloads.models.profiles import outputs_and_profile
from workloads.models.size import model_size
from workloads.models.tagger import Tagger

FILES = Path(__file__).parents[3] / "data" / "official"
CLOSE = 2e-5


def state_of(name: str) -> dict[str, Tensor]:
    return keyed_state(json.loads((FILES / f"{name}.json").read_text())["shapes"])


def as_tagger(name: str) -> Tagger:
    converted = passt.convert(state_of(name))
    tags = tuple(map(str, range(converted.num_classes)))
    shape: dict[str, Any] = {"labels": "multi", "clip_seconds": converted.clip_seconds, "clip_rate": 32_000}
    tagger = Tagger(converted.model, tags=tags, **shape)
    tagger.backbone.load_state_dict(converted.weights)
    return tagger.eval()


def official_logits(name: str) -> Tensor:
    return torch.tensor(json.loads((FILES / f"{name}.json").read_text())["logits"])


@pytest.mark.parametrize(
    ("name", "stride", "seconds", "columns"),
    [("passt_10", 10, 10.0, 99), ("passt_12", 12, 10.0, 83), ("passt_16_20s", 16, 20.0, 125)],
)
def test_passt_equals_the_official_code(name: str, stride: Any, seconds: float, columns: int) -> None:
    converted = passt.convert(state_of(name))
    arch = PaSST(family="passt", stride=stride, depth=2)
    assert converted.model == Model(arch=arch, front_end=FrontEnd(kind="efficientat128"))
    assert (converted.num_classes, converted.clip_seconds) == (527, seconds)
    assert converted.dropped == ("head_dist.weight", "head_dist.bias")
    assert converted.weights["time"].shape == (1, 768, 1, columns)
    tagger = as_tagger(name)
    with torch.no_grad():
        logits_BC = tagger.tag(waveform(seconds, 32_000))[:, :20]
    torch.testing.assert_close(logits_BC, official_logits(name), rtol=0, atol=CLOSE)


def test_a_wrong_conversion_would_be_detected() -> None:
    tagger, expected_BC = as_tagger("passt_10"), official_logits("passt_10")
    state = tagger.backbone.state_dict()
    with torch.no_grad():
        mel_BMF = tagger.front_end(waveform(10, 32_000))
        for change in ("time", "bands", "special", "cls_token", "blocks.0.attn.qkv.weight", "head.1.weight"):
            before = state[change].clone()
            axis = {"time": 3, "bands": 2, "special": 1, "cls_token": 2}.get(change, 0)
            state[change].copy_(before.roll(1, dims=axis))
            assert (tagger(mel_BMF)[:, :20] - expected_BC).abs().max() > 5 * CLOSE, change
            state[change].copy_(before)


def test_published_sizes() -> None:
    """Its own code counts 86,153,758 parameters, the second head's included."""
    size = model_size(CATALOG["passt_s10"], num_classes=527, clip_seconds=10.0, clip_rate=32_000)
    assert size.params == 86_153_758 - 527 * 769
    tokens = 12 * 99 + 2
    blocks = 12 * (12 * tokens * 768**2 + 2 * tokens**2 * 768)
    assert size.macs == blocks + 12 * 99 * 256 * 768 + 527 * 768


def test_published_weights_start_a_model_of_another_length() -> None:
    """The first positions of time, as PaSST itself takes them for a shorter clip, or interpolated ones."""
    state = state_of("passt_10")
    arch = PaSST(family="passt", depth=2)
    shorter = build_backbone(arch, bands=128, frames=500, num_classes=3)
    weights, dropped = adapt_weights(state, shorter, family="passt")
    own_head = {f"head.{number}.{part}" for number in (0, 1) for part in ("weight", "bias")}
    assert set(dropped) == {"head_dist.weight", "head_dist.bias"} | own_head
    assert torch.equal(weights["time"], state["time_new_pos_embed"][..., :49])
    longer = build_backbone(arch, bands=128, frames=2000, num_classes=3)
    weights, _ = adapt_weights(state, longer, family="passt")
    assert weights["time"].shape == (1, 768, 1, 199)
    assert torch.equal(weights["time"][..., 0], state["time_new_pos_embed"][..., 0])


def test_its_steps_and_its_profile() -> None:
    tagger = as_tagger("passt_16_20s")
    mel_BMF = tagger.front_end(waveform(20, 32_000))
    with torch.no_grad():
        outputs, p_BP = outputs_and_profile(tagger, mel_BMF)
    assert outputs.sequence_BPD.shape == (2, 125, 768)
    assert p_BP.shape == (2, 125)
    torch.testing.assert_close(p_BP.sum(1), torch.ones(2))
    assert tagger.backbone.time_steps(2000, 125) == (0, 16)
    frames = build_backbone(
        PaSST(family="passt", depth=1, frame_pool="max"), bands=128, frames=500, num_classes=3
    ).outputs(mel_BMF[..., :500])
    assert frames.frames_BPC is not None
    assert torch.equal(frames.logits_BC, frames.frames_BPC.amax(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_new_pos_embed": torch.zeros(1, 768, 1, 320)}, "320 positions of stride 10 are 32 s"),
        ({"freq_new_pos_embed": torch.zeros(1, 768, 11, 1)}, r"has not 12, 10, 9, 8 rows"),
        ({"odd": torch.zeros(1)}, "unknown: odd"),
        ({"blocks.1.norm2.bias": None}, r"missing: blocks\.1\.norm2\.bias"),
        ({"time_new_pos_embed": None}, "time_new_pos_embed is missing"),
    ],
)
def test_misfits_are_named(changes: dict[str, Tensor | None], message: str) -> None:
    state = state_of("passt_10") | changes
    with pytest.raises(ValueError, match=message):
        passt.convert({name: tensor for name, tensor in state.items() if tensor is not None})


def test_spectra_with_another_hop_are_refused_by_the_name_of_the_file(antiphon: Any, tmp_path: Path) -> None:
    name = "passt-s-f128-stfthop160-p16-s10-ap.473-swa.pt"
    torch.save(state_of("passt_10"), tmp_path / name)
    done = antiphon("models", "import", tmp_path / name, tmp_path / "out")
    assert done.code == 2
    assert re.search("a network over spectra with another hop", " ".join(done.err.split()))


def test_a_published_file_becomes_a_tagger_without_a_family(antiphon: Any, tmp_path: Path) -> None:
    torch.save(state_of("passt_10"), tmp_path / "passt-s-f128-p16-s10-ap.476-swa.pt")
    done = antiphon("models", "import", tmp_path / "passt-s-f128-p16-s10-ap.476-swa.pt", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["model"]["arch"]["family"], found["origin"]["project"]) == ("passt", "kkoutini/PaSST")
    assert (found["tags"], found["clip_seconds"]) == (527, 10.0)
