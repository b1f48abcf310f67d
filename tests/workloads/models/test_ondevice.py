"""The five keyword spotters against Google's sizes, and their parts against their definitions, step by step."""

import math
from pathlib import Path

import pytest
import torch
from scipy.fft import dct
from torch import Tensor, nn
from torchaudio.transforms import MFCC

from tests.gradients import parameters_without_gradient
from workloads.config.architectures import OnDevice
from workloads.evaluate.predict import load_tagger
from workloads.models.backbone import Backbone
from workloads.models.families import adapt_weights, build_backbone
from workloads.models.ondevice import Cepstrum, PeepholeLSTM, TemporalBlock
from workloads.runtime.event_log import read_event_log
from workloads.train import loop

VARIANTS = ("lstm_p", "tc_resnet", "crnn", "att_rnn", "mhatt_rnn")
ATTENTIVE = [("att_rnn", 1), ("mhatt_rnn", 4)]
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build_spotter(variant: str, *, classes: int = 12, frames: int = 50, dropout: float = 0.0) -> Backbone:
    torch.manual_seed(0)
    arch = OnDevice(family="ondevice", variant=variant, dropout=dropout)
    return build_backbone(arch, bands=40, frames=frames, num_classes=classes)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def num_running_statistics(model: nn.Module) -> int:
    """Batch norm's running means and variances, which Keras counts as non-trainable parameters."""
    return sum(tensor.numel() for name, tensor in model.state_dict().items() if "running" in name)


@pytest.mark.parametrize(
    ("variant", "millions", "weights"),
    [
        ("lstm_p", 0.546, 545_912),
        ("crnn", 0.468, 467_772),
        ("att_rnn", 0.497, 496_497),  # 496,519 with running statistics, which rounds to the table's .497
        ("mhatt_rnn", 0.743, 743_025),
    ],
)
def test_sizes_match_the_table(variant: str, millions: float, weights: int) -> None:
    model = build_spotter(variant)
    assert size(model) == weights
    assert round((weights + num_running_statistics(model)) / 1e6, 3) == millions


def test_the_size_of_tc_resnet_follows_from_its_channels() -> None:
    def conv(kernel: int, inputs: int, outputs: int) -> int:
        return kernel * inputs * outputs + 2 * outputs  # with its batch norm's scale and shift

    stem, head = conv(3, 40, 50), 72 * 12 + 12
    same = 4 * 2 * conv(9, 50, 50) + 2 * conv(9, 72, 72)
    wider = conv(1, 50, 72) + conv(9, 50, 72) + conv(9, 72, 72)
    assert size(build_spotter("tc_resnet")) == stem + same + wider + head == 364_464
    biases = 50 + 4 * 2 * 50 + 3 * 72 + 2 * 72  # of Google's convolutions, in front of batch norm
    assert 364_464 + biases == 365_274


@every_variant
@pytest.mark.parametrize("frames", [7, 50, 250, 499])
def test_clips_of_any_length_give_logits_embedding_and_sequence(variant: str, frames: int) -> None:
    model = build_spotter(variant, frames=frames).eval()
    with torch.no_grad():
        logits, embedding, sequence, _ = model.outputs(torch.randn(2, 40, frames))
        assert torch.allclose(model.head(embedding), logits, atol=1e-6)  # the embedding is the input of the last layer
    steps, features, width = {
        "lstm_p": (frames, 200, 200),
        "tc_resnet": (math.ceil(frames / 2), 72, 72),
        "crnn": (frames - 6, 256, 256),
        "att_rnn": (frames, 256, 32),
        "mhatt_rnn": (frames, 256, 32),
    }[variant]
    assert logits.shape == (2, 12)
    assert embedding.shape == (2, width)
    assert sequence.shape == (2, steps, features)


@every_variant
def test_every_parameter_has_a_gradient(variant: str) -> None:
    model = build_spotter(variant, classes=5).train()
    model(torch.randn(4, 40, 50)).square().sum().backward()
    assert parameters_without_gradient(model, at_most=1e-6) == []


@every_variant
def test_clips_do_not_influence_each_other(variant: str) -> None:
    model, mel_BMF = build_spotter(variant).eval(), torch.randn(3, 40, 50)
    with torch.no_grad():
        for together, alone in zip(model.outputs(mel_BMF)[:3], model.outputs(mel_BMF[1:2])[:3], strict=True):
            assert torch.allclose(together[1:2], alone, atol=1e-5)


@every_variant
def test_dropout_reaches_the_network(variant: str) -> None:
    model, mel_BMF = build_spotter(variant, dropout=0.5), torch.randn(2, 40, 50)
    with torch.no_grad():
        assert not torch.equal(model.train()(mel_BMF), model(mel_BMF))
        assert torch.equal(model.eval()(mel_BMF), model(mel_BMF))


def test_cepstra_are_those_of_mfcc_and_of_the_textbook() -> None:
    torch.manual_seed(0)
    mel_BMF, cepstrum = torch.randn(2, 40, 30), Cepstrum(40, 20)
    mfcc = MFCC(16_000, n_mfcc=20, melkwargs={"n_mels": 40, "n_fft": 1024})
    x_BFQ = cepstrum(mel_BMF)
    assert torch.allclose(x_BFQ, mel_BMF.transpose(1, 2) @ mfcc.dct_mat, atol=1e-5)
    textbook = dct(mel_BMF.double().numpy(), type=2, axis=1, norm="ortho")[:, :20]
    assert torch.allclose(x_BFQ.transpose(1, 2).double(), torch.from_numpy(textbook), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cepstrum(mel_BMF), x_BFQ)
    assert cepstrum.state_dict() == {}  # a constant, not a weight


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_without_peepholes_the_cell_is_torch_s_own() -> None:
    ours = build_spotter("lstm_p").lstm
    nn.init.zeros_(ours.peepholes)
    theirs = nn.LSTM(20, 500, proj_size=200, batch_first=True)
    theirs.load_state_dict(
        {
            "weight_ih_l0": ours.inputs.weight,
            "weight_hh_l0": ours.recurrent.weight,
            "bias_ih_l0": ours.inputs.bias,
            "bias_hh_l0": torch.zeros(2000),
            "weight_hr_l0": ours.project.weight,
        }
    )
    x_BPD = 3 * torch.randn(4, 60, 20)
    with torch.no_grad():
        assert torch.allclose(ours(x_BPD), theirs(x_BPD)[0], atol=1e-5)


def test_peepholes_follow_the_papers_equations() -> None:
    """Sak et al. 2014, equations 1 to 6, one clip and one step at a time."""
    torch.manual_seed(0)
    lstm, x_BPD = PeepholeLSTM(3, 5, 2).double(), torch.randn(2, 6, 3, dtype=torch.float64)
    nn.init.normal_(lstm.peepholes)
    input_weights, recurrent_weights = lstm.inputs.weight.view(4, 5, 3), lstm.recurrent.weight.view(4, 5, 2)
    bias, (peephole_i, peephole_f, peephole_o) = lstm.inputs.bias.view(4, 5), lstm.peepholes
    for clip, x_PD in enumerate(x_BPD):
        r, c = torch.zeros(2, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
        for step, x in enumerate(x_PD):
            i, f, g, o = (input_weights[gate] @ x + recurrent_weights[gate] @ r + bias[gate] for gate in range(4))
            c_before = c
            c = torch.sigmoid(f + peephole_f * c_before) * c_before + torch.sigmoid(
                i + peephole_i * c_before
            ) * torch.tanh(g)
            r = lstm.project.weight @ (torch.sigmoid(o + peephole_o * c) * torch.tanh(c))
            assert torch.allclose(lstm(x_BPD)[clip, step], r, atol=1e-12)


@pytest.mark.parametrize(("variant", "lookahead"), [("lstm_p", 0), ("crnn", 6)])
def test_streaming_variants_are_causal_and_use_the_last_step(variant: str, lookahead: int) -> None:
    model, mel_BMF = build_spotter(variant).eval(), torch.randn(2, 40, 50)
    other_BMF = mel_BMF.clone()
    other_BMF[:, :, 30:] = torch.randn(2, 40, 20)
    dense = model.dense if variant == "crnn" else nn.Identity()
    with torch.no_grad():
        _, embedding, sequence, _ = model.outputs(mel_BMF)
        changed = (sequence - model.outputs(other_BMF).sequence_BPD).abs().amax((0, 2)) > 1e-6
        assert torch.allclose(embedding, dense(sequence[:, -1]), atol=1e-6)
    assert changed.tolist() == [step + lookahead >= 30 for step in range(50 - lookahead)]


@pytest.mark.parametrize(("inputs", "outputs"), [(50, 50), (50, 72)])
def test_a_block_of_tc_resnet_without_convolutions_is_its_shortcut(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    block, x_BDF = TemporalBlock(inputs, outputs).eval(), torch.randn(2, inputs, 21)
    shortcut = x_BDF
    if inputs != outputs:
        conv, norm = block.shortcut[0], block.shortcut[1]
        strided = torch.einsum("ed,bdf->bef", conv.weight[:, :, 0], x_BDF[:, :, ::2])
        shortcut = strided / (1 + norm.eps) ** 0.5
    assert not torch.allclose(block(x_BDF), shortcut.relu(), atol=1e-2)
    nn.init.zeros_(block.convs[-1].weight)
    assert torch.allclose(block(x_BDF), shortcut.relu(), atol=1e-5)


@pytest.mark.parametrize(("variant", "heads"), ATTENTIVE)
def test_attention_is_what_the_network_weights_time_with(variant: str, heads: int) -> None:
    model, mel_BMF = build_spotter(variant).train(), torch.randn(2, 40, 50)
    # Training mode: with an untrained batch norm's running statistics, all steps would be nearly alike.
    pooled: list[Tensor] = []
    model.dense.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    with torch.no_grad():
        sequence_BPD = model.outputs(mel_BMF).sequence_BPD
        a_BP = model.log_attention(sequence_BPD).exp()
        assert a_BP.shape == (2, 50)
        assert torch.allclose(a_BP.sum(1), torch.ones(2), atol=1e-6)
        assert a_BP.max() > 1.2 / 50
        over_heads_BD = pooled[0].unflatten(1, (heads, 256)).mean(1)
        assert torch.allclose(over_heads_BD, (a_BP.unsqueeze(2) * sequence_BPD).sum(1), atol=1e-5)
        for head, query in enumerate(model.queries):
            query_BD = query(sequence_BPD[:, 25])
            scores = torch.stack([(query_BD * sequence_BPD[:, step]).sum(1) for step in range(50)], dim=1)
            assert torch.allclose(model.weights(sequence_BPD)[:, head], scores.softmax(1), atol=1e-6)


@pytest.mark.parametrize(("variant", "heads"), ATTENTIVE)
def test_every_head_has_gradients_from_its_attention(variant: str, heads: int) -> None:
    """Temporal distillation needs it: a loss on the attention alone reaches every query and the layers before."""
    model = build_spotter(variant).train()
    model.weights(model.outputs(torch.randn(2, 40, 50)).sequence_BPD).mean(1).square().sum().backward()
    assert len(model.queries) == heads
    assert all(query.weight.grad.abs().max() > 1e-8 for query in model.queries)
    assert all(parameter.grad.abs().max() > 0 for parameter in model.convs.parameters())
    assert model.head.weight.grad is None


def test_logarithms_stay_finite_where_attention_is_all_on_one_step() -> None:
    """Scores are unscaled: after some training most of a softmax in fp32 is exactly 0."""
    model = build_spotter("mhatt_rnn").train()
    with torch.no_grad():
        for query in model.queries:
            query.weight.mul_(2000)
    sequence_BPD = model.outputs(torch.randn(2, 40, 50)).sequence_BPD
    assert (model.weights(sequence_BPD).mean(1) == 0).any()
    log_BP = model.log_attention(sequence_BPD)
    assert log_BP.isfinite().all()
    log_BP.sum().backward()
    assert all(query.weight.grad.isfinite().all() for query in model.queries)


def test_the_attention_of_half_precision_still_sums_to_one() -> None:
    model = build_spotter("mhatt_rnn").eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        a_BP = model.log_attention(model.outputs(torch.randn(2, 40, 50)).sequence_BPD).exp()
    assert torch.allclose(a_BP.sum(1), torch.ones(2), atol=1e-5)


def test_initial_weights_are_keras_s() -> None:
    gru, lstm = build_spotter("crnn").gru, build_spotter("lstm_p").lstm
    product = gru.weight_hh_l0.T @ gru.weight_hh_l0
    assert torch.allclose(product, torch.eye(256), atol=1e-4)
    assert gru.weight_ih_l0.abs().max().item() == pytest.approx((6 / (256 + 3 * 256)) ** 0.5, rel=1e-3)
    assert gru.bias_ih_l0.abs().max() == gru.bias_hh_l0.abs().max() == 0
    assert lstm.inputs.bias.tolist() == [0.0] * 500 + [1.0] * 500 + [0.0] * 1000
    assert lstm.peepholes.abs().max().item() == pytest.approx((3 / 500) ** 0.5, rel=0.01)


@every_variant
def test_the_last_layer_is_dropped_where_classes_differ(variant: str) -> None:
    state = build_spotter(variant, classes=5).state_dict()
    weights, dropped = adapt_weights(state, build_spotter(variant, classes=7), family="ondevice")
    assert dropped == ("head.weight", "head.bias")
    assert set(weights) == set(state) - set(dropped)
    same, dropped = adapt_weights(state, build_spotter(variant, classes=5), family="ondevice")
    assert (set(same), dropped) == (set(state), ())


def test_clips_too_short_for_crnn_are_refused() -> None:
    with pytest.raises(ValueError, match="need 7 frames or more, these clips have 6; use longer clips"):
        build_spotter("crnn", frames=6)


@pytest.mark.parametrize("variant", ["lstm_p", "att_rnn"])
def test_a_run_with_it(variant: str, tiny, start) -> None:
    model = f'{{arch={{family="ondevice", variant="{variant}", dropout=0.1}}, front_end={{kind="logmel40"}}}}'
    turns = ["schedule.burn_in=2", "schedule.period=2", "schedule.turns=2", "edges.0.source=live"]
    recipe = tiny("demo", f"models.cnn={model}", *turns)
    initial = start(recipe).pool.train_state("cnn").tagger.backbone.state_dict()
    run = start(recipe)
    assert loop(run) == "done"
    result = read_event_log(run.session.work_dir.parent / "events.jsonl")[-1]["models"]["cnn"]
    tagger, _ = load_tagger(Path(result["checkpoint"]))
    tagger.eval()
    with torch.no_grad():
        mel_BMF = tagger.front_end(torch.randn(2, tagger.clip_rate))
        assert mel_BMF.shape == (2, 40, 50)
        assert tagger(mel_BMF).isfinite().all()
    trained = tagger.backbone.state_dict()
    assert [name for name, tensor in initial.items() if torch.equal(tensor, trained[name])] == []
