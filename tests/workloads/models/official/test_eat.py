"""EAT and SSLAM against the logits of SSLAM's official code for the same weights and waveform, front end included."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.official import keyed_state, waveform
from workloads.config.architectures import EAT
from workloads.config.recipe import FrontEnd, Model
from workloads.evaluate.predict import load_tagger
from workloads.models.catalog import CATALOG
from workloads.models.eat import grid_positions
from workloads.models.families import adapt_weights, build_backbone
from workloads.models.official import eat
from workloads.models.profiles import outputs_and_profile
from workloads.models.size import model_size
from workloads.models.tagger import Tagger

RECORDED = json.loads((Path(__file__).parents[3] / "data" / "official" / "sslam_base_2.json").read_text())
EXPECTED_BC = torch.tensor(RECORDED["logits"])
CLOSE = 2e-5


def columns_first() -> Tensor:
    """The positions as the project stores them, of 768 columns of time: column after column."""
    return grid_positions((8, 768), 768).unflatten(0, (8, 768)).transpose(0, 1).flatten(0, 1).unsqueeze(0)


def fairseq_state() -> dict[str, Tensor]:
    return keyed_state(RECORDED["shapes"]) | {RECORDED["positions"]: columns_first()}


def hub_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of its hub folder: the wrapper's `model.` before all, the encoder's parts without theirs."""
    renamed = {}
    for name, tensor in state.items():
        inner = name.removeprefix("model.").removeprefix("modality_encoders.IMAGE.")
        renamed["model." + inner.replace("context_encoder.norm.", "pre_norm.")] = tensor
    return renamed


def as_tagger(state: dict[str, Tensor]) -> Tagger:
    converted = eat.convert(state)
    shape: dict[str, Any] = {"labels": "multi", "clip_seconds": converted.clip_seconds, "clip_rate": 16_000}
    tagger = Tagger(converted.model, tags=tuple(map(str, range(converted.num_classes))), **shape)
    tagger.backbone.load_state_dict(converted.weights)
    return tagger.eval()


def test_positions_are_those_that_the_official_code_computes() -> None:
    for number, values in RECORDED["some_positions"].items():
        torch.testing.assert_close(columns_first()[0, int(number), ::96], torch.tensor(values), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", [fairseq_state, lambda: hub_names(fairseq_state())], ids=["fairseq", "hub"])
def test_sslam_equals_the_official_code(form: Any) -> None:
    converted = eat.convert(form())
    front_end = FrontEnd(kind="kaldi128", frames=1024, mean=-4.268, std=9.138)
    assert converted.model == Model(arch=EAT(family="eat", depth=2), front_end=front_end)
    assert (converted.num_classes, converted.clip_seconds, len(converted.dropped)) == (527, 10.0, 1)
    with torch.no_grad():
        logits_BC = as_tagger(form()).tag(waveform(10, 16_000))[:, :20]
    torch.testing.assert_close(logits_BC, EXPECTED_BC, rtol=0, atol=CLOSE)


def test_a_wrong_conversion_would_be_detected() -> None:
    tagger = as_tagger(fairseq_state())
    state = tagger.backbone.state_dict() | {"positions": tagger.backbone.positions_LD}
    with torch.no_grad():
        mel_BMF = tagger.front_end(waveform(10, 16_000))
        for change, wrong in (
            ("positions", lambda x: x.unflatten(0, (8, 64)).transpose(0, 1).flatten(0, 1)),
            ("patches.weight", lambda x: x.transpose(2, 3)),
            ("token", lambda x: x.roll(1, dims=2)),
            ("norm_tokens.weight", lambda x: x.roll(1)),
            ("blocks.0.norm1.weight", lambda x: state["blocks.0.norm2.weight"]),
            ("head.0.weight", lambda x: x.roll(1)),
        ):
            before = state[change].clone()
            state[change].copy_(wrong(before).clone())
            assert (tagger(mel_BMF)[:, :20] - EXPECTED_BC).abs().max() > 5 * CLOSE, change
            state[change].copy_(before)


def test_published_sizes() -> None:
    """The official code counts 85,660,943 parameters of 12 blocks, its computed positions left out."""
    size = model_size(CATALOG["eat_base"], num_classes=527, clip_seconds=10.0, clip_rate=16_000)
    tokens = 8 * 64 + 1
    assert size.params == 85_660_943
    assert size.macs == 12 * (12 * tokens * 768**2 + 2 * tokens**2 * 768) + 512 * 256 * 768 + 527 * 768


def test_clips_of_any_length_have_the_positions_of_their_patches() -> None:
    arch = EAT(family="eat", depth=2)
    longer = build_backbone(arch, bands=128, frames=2048, num_classes=3)
    weights, dropped = adapt_weights(eat.convert(fairseq_state()).weights, longer, family="eat")
    assert set(dropped) == {f"head.{number}.{part}" for number in (0, 1) for part in ("weight", "bias")}
    assert "positions_LD" not in weights
    positions = longer.positions_LD.unflatten(0, (8, 128))[:, :64].flatten(0, 1)
    assert torch.equal(positions, grid_positions((8, 64), 768))


def test_its_steps_and_its_profile() -> None:
    tagger = as_tagger(fairseq_state())
    mel_BMF = tagger.front_end(waveform(10, 16_000))
    with torch.no_grad():
        outputs, p_BP = outputs_and_profile(tagger, mel_BMF)
    assert (outputs.sequence_BPD.shape, p_BP.shape) == ((2, 64, 768), (2, 64))
    torch.testing.assert_close(p_BP.sum(1), torch.ones(2))
    assert tagger.backbone.time_steps(1024, 64) == (0, 16)
    assert torch.equal(outputs.logits_BC, tagger(mel_BMF)), "it only listens"


def test_misfits_are_named() -> None:
    state, positions = fairseq_state(), RECORDED["positions"]
    for changes, message in (
        ({positions: columns_first() + 0.1}, "not the sines of 8 rows"),
        ({"odd": torch.zeros(1)}, "unknown: odd"),
        ({"fc_norm.bias": None}, r"missing: head\.0\.bias"),
        ({eat.FAIRSEQ + eat.STEM: torch.zeros(100, 1, 16, 16)}, "not four axes of 768, 1024 rows"),
    ):
        changed = {name: tensor for name, tensor in (state | changes).items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            eat.convert(changed)


def test_its_hub_folder_is_imported(antiphon: Any, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    save_file(
        hub_names({name: t.contiguous() for name, t in fairseq_state().items()}), tmp_path / "net/model.safetensors"
    )
    config = {"model_type": "eat", "architectures": ["EATModel"], "model_variant": "finetune", "mel_bins": 128}
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))
    done = antiphon("models", "import", tmp_path / "net", tmp_path / "out")
    assert done.code == 0, done.err
    tagger, state = load_tagger(tmp_path / "out")
    assert (tagger.model.arch.family, len(tagger.tags), state["origin"]["project"]) == ("eat", 527, "net")
    (tmp_path / "net" / "config.json").write_text(json.dumps(config | {"model_variant": "pretrain"}))
    done = antiphon("models", "import", tmp_path / "net", tmp_path / "other")
    assert done.code == 2
    assert "model_variant = 'pretrain': this network's is 'finetune' here" in " ".join(done.err.split())
