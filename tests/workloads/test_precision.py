"""bf16 (train.precision): how far it moves a network's logits; losses of bf16 logits are computed in fp32."""

import pytest
import torch

from tests.official import keyed_state, waveform
from workloads.config.architectures import AST, CED, MN, Arch, DyMN
from workloads.config.recipe import Edge, FrontEnd, Model
from workloads.distill.edges import EdgeTerm, student_loss
from workloads.models.tagger import Tagger, build_tagger

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
    tagger = build_tagger(model, name=name, tags=tags, labels="multi", clip_seconds=1, clip_rate=rate, seed=0)
    state = keyed_state({name: list(tensor.shape) for name, tensor in tagger.state_dict().items()})
    state |= {"backbone.temperature": torch.ones(())} if name == "dymn" else {}
    tagger.load_state_dict(state)
    return tagger.eval()


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
