"""bf16 (train.precision): how far it moves a network's logits; what is computed in fp32 all the same."""

import pytest
import torch
from torch import nn

from tests.commands import event_records
from tests.hearing import hearing
from tests.official import waveform
from workloads.config.architectures import AST, CED, MN, Arch, DyMN, OnDevice
from workloads.config.edge import Edge
from workloads.config.recipe import FrontEnd, Model
from workloads.distill.edges import EdgeTerm, student_loss
from workloads.evaluate.predict import load_tagger, score_clips
from workloads.models.families import build_backbone
from workloads.models.tagger import Tagger, build_tagger
from workloads.train import loop

CASES: dict[str, tuple[Arch, str]] = {
    "mn": (MN(family="mn", width=0.4), "efficientat128"),
    "dymn": (DyMN(family="dymn", width=0.4, temperature=1.0), "efficientat128"),
    "ast": (AST(family="ast", size="tiny", stride=16), "kaldi128"),
    "ced": (CED(family="ced", size="tiny"), "ced64"),
}
LARGEST = 0.05  # difference of a logit, as a share of the largest logit; bf16 keeps 8 bits, that is 0.004


def build(name: str) -> Tagger:
    arch, kind = CASES[name]
    model = Model(arch=arch, front_end=FrontEnd(kind=kind))
    rate, tags = model.front_end.rate, tuple(map(str, range(20)))
    return hearing(build_tagger(model, name=name, tags=tags, labels="multi", clip_seconds=1, clip_rate=rate, seed=0))


@pytest.mark.parametrize("name", CASES)
def test_bf16_stays_near_fp32(name):
    tagger = build(name)
    x_BT = waveform(1.0, tagger.clip_rate)
    with torch.no_grad():
        expected_BC = tagger.tag(x_BT)
        with torch.autocast("cpu", torch.bfloat16):
            logits_BC = tagger.tag(x_BT)
    assert logits_BC.dtype == torch.bfloat16
    difference = (logits_BC.float() - expected_BC).abs().max() / expected_BC.abs().max()
    assert 0 < difference < LARGEST, difference
    assert (expected_BC[0] - expected_BC[1]).abs().max() > 0.05


@pytest.mark.parametrize("variant", ["crnn", "att_rnn", "mhatt_rnn"])
def test_recurrent_layers_stay_out_of_autocast(variant):
    """On CUDA it would run them in fp16."""
    network = build_backbone(OnDevice(family="ondevice", variant=variant), bands=40, frames=50, num_classes=10)
    seen = []
    for module in network.modules():
        if isinstance(module, nn.RNNBase):
            module.register_forward_pre_hook(
                lambda _, inputs: seen.append((inputs[0].dtype, torch.is_autocast_enabled("cpu")))
            )
    with torch.autocast("cpu", torch.bfloat16):
        logits_BC = network(torch.randn(2, 40, 50, generator=torch.Generator().manual_seed(0)))
    assert seen == [(torch.float32, False)]
    assert logits_BC.dtype == torch.bfloat16


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_losses_of_bf16_logits_are_in_fp32(labels):
    generator = torch.Generator().manual_seed(0)
    student_BC, teacher_BC = torch.randn(2, 6, 10, generator=generator).bfloat16().unbind()
    y_BC = torch.eye(10)[:6]
    edge = Edge(teacher="a", student="b", weight=0.5, temperature=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = student_loss(student_BC, y_BC, [EdgeTerm(edge, 0.5, teacher_BC)], labels=labels, smoothing=0.1)
    expected, _ = student_loss(
        student_BC.float(), y_BC, [EdgeTerm(edge, 0.5, teacher_BC.float())], labels=labels, smoothing=0.1
    )
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_validation_is_in_the_precision_of_the_run_and_final_scores_are_in_fp32(tiny, start):
    run = start(tiny("mutual", "schedule.burn_in=4", "schedule.steps=4", "train.precision=bf16"))
    assert loop(run) == "done"
    records = event_records(run)
    last = [record["values"] for record in records if record["kind"] == "metrics"][-1]
    for name, row in records[-1]["models"].items():
        tagger, _ = load_tagger(row["checkpoint"])
        clips = run.prepared.splits.val
        validated = score_clips(tagger, clips, run.prepared, run.placement.workers, autocast=run.pool.autocast)
        assert {f"{name}/val/{key}": value for key, value in validated.items()}.items() <= last.items()
        assert row["val"] == score_clips(tagger, clips, run.prepared, run.placement.workers)
        assert row["val"]["log_loss"] == pytest.approx(validated["log_loss"], rel=0.01)
        assert row["val"]["log_loss"] != validated["log_loss"]
