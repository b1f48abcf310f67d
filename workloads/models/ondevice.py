"""The five keyword spotters for small devices that TKD trains, in Google's sizes (reference/tkd.md section 5).

Sizes and initial weights are those of Google's kws_streaming, where the input of all five is cepstra: here the cosine
transform is the network's first, fixed layer, so that they share one log-mel. Does not depend on front ends or
training.

Axes: B clips, M mel bands, F frames, Q cepstral coefficients, P steps in time, D features or channels, U units,
H heads, C tags.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchaudio.functional import create_dct

from workloads.config.architectures import OnDevice
from workloads.models.backbone import Backbone, NetworkStream, Outputs
from workloads.models.fit import fit_head
from workloads.models.recurrent_stream import RecurrentStream, State

HEAD = ("head.weight", "head.bias")
COEFFICIENTS, TC_COEFFICIENTS = 20, 40  # of the recurrent networks, of TC-ResNet
UNITS, PROJECTED = 500, 200  # LSTM-P
CHANNELS = (50, 50, 50, 50, 50, 72, 72)  # TC-ResNet
MIN_CRNN_FRAMES = 7  # receptive field of its two convolutions, which are unpadded as in a stream


class Cepstrum(nn.Module):
    """The first coefficients of the orthonormal DCT-II over the bands: mel_BMF to x_BFQ; a constant, not a weight.

    In float32, also inside autocast: the first coefficient is large, and half precision would lose its detail.
    """

    dct_MQ: Tensor

    def __init__(self, bands: int, coefficients: int = COEFFICIENTS) -> None:
        super().__init__()
        assert coefficients <= bands, (coefficients, bands)
        self.register_buffer("dct_MQ", create_dct(coefficients, bands, norm="ortho"), persistent=False)

    def forward(self, mel_BMF: Tensor) -> Tensor:
        with torch.autocast(mel_BMF.device.type, enabled=False):
            return mel_BMF.float().transpose(1, 2) @ self.dct_MQ


class PeepholeLSTM(nn.Module):
    """An LSTM with peephole connections from the cell to the gates and a projected state: x_BPD to states_BPD.

    Sak, Senior, Beaufays 2014 (arXiv 1402.1128), the cell of LSTM-P; torch's LSTM projects but has no peepholes. Gates
    are in torch's order: input (i), forget (f), cell candidate (g), output (o).
    """

    def __init__(self, inputs: int, units: int, projected: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(inputs, 4 * units)
        self.recurrent = nn.Linear(projected, 4 * units, bias=False)
        self.peepholes = nn.Parameter(torch.empty(3, units))  # of the input, forget and output gate
        self.project = nn.Linear(units, projected, bias=False)

    def forward(self, x_BPD: Tensor) -> Tensor:
        return self.carry_on(x_BPD)[0]

    def carry_on(self, x_BPD: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """States_BPD of these steps, and the state after them: state_BD and cell_BU; None: zeros, as at the start."""
        state_BD, cell_BU = state or (
            x_BPD.new_zeros(x_BPD.shape[0], self.project.out_features),
            x_BPD.new_zeros(x_BPD.shape[0], self.project.in_features),
        )
        peephole_i_U, peephole_f_U, peephole_o_U = self.peepholes
        states = []
        for projected_input in self.inputs(x_BPD).unbind(1):  # computed for all steps at once
            i_BU, f_BU, g_BU, o_BU = (projected_input + self.recurrent(state_BD)).chunk(4, dim=1)
            i_BU, f_BU = (i_BU + peephole_i_U * cell_BU).sigmoid(), (f_BU + peephole_f_U * cell_BU).sigmoid()
            cell_BU = f_BU * cell_BU + i_BU * g_BU.tanh()
            state_BD = self.project((o_BU + peephole_o_U * cell_BU).sigmoid() * cell_BU.tanh())
            states.append(state_BD)
        return torch.stack(states, dim=1), (state_BD, cell_BU)


class ProjectedLSTM(Backbone):
    """LSTM-P: one peephole LSTM over the cepstra, whose last state is classified.

    Google's `lstm`; without its convolutions it is the CRNN of Arik et al. 2017 (arXiv 1703.05390).
    """

    def __init__(self, arch: OnDevice, *, bands: int, num_classes: int) -> None:
        super().__init__()
        self.cepstrum = Cepstrum(bands)
        self.lstm = PeepholeLSTM(COEFFICIENTS, UNITS, PROJECTED)
        self.drop = nn.Dropout(arch.dropout)
        self.head = nn.Linear(PROJECTED, num_classes)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        sequence_BPD = self.lstm(self.cepstrum(mel_BMF))
        embedding_BD = sequence_BPD[:, -1]
        return Outputs(self.head(self.drop(embedding_BD)), embedding_BD, sequence_BPD)

    def stream(self, clip_frames: int) -> NetworkStream:
        """Logits of a step are those of a clip that ends with it."""
        return RecurrentStream(self._carry_on, frames_of_first_step=1, look_ahead=0)

    def _carry_on(self, mel_BMF: Tensor, state: State | None) -> tuple[Tensor, State]:
        sequence_BPD, state = self.lstm.carry_on(self.cepstrum(mel_BMF), state)
        return self.head(self.drop(sequence_BPD)), state


def states(gru: nn.GRU, x_BPD: Tensor, state_1BU: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The GRU's states_BPD at all steps, and its last state, in float32 also inside autocast.

    On CUDA autocast runs cuDNN's recurrent layers in fp16, also where it is to cast to bf16 (ATen/cudnn/
    AutocastRNN.cpp), and fp16 gradients vanish unless the loss is scaled. `PeepholeLSTM` is of linear layers and no
    such case.
    """
    with torch.autocast(x_BPD.device.type, enabled=False):
        all_BPD, last_1BU = gru(x_BPD.float(), state_1BU)
    return all_BPD, last_1BU


class ConvGRU(Backbone):
    """CRNN: two convolutions, a GRU over time, and dense layers over its last output; P = F - 6.

    Google's `crnn`, after Arik et al. 2017 (arXiv 1703.05390).
    """

    def __init__(self, arch: OnDevice, *, bands: int, num_classes: int) -> None:
        super().__init__()
        self.cepstrum = Cepstrum(bands)
        self.convs = nn.Sequential(nn.Conv2d(1, 16, (3, 3)), nn.ReLU(), nn.Conv2d(16, 16, (5, 3)), nn.ReLU())
        self.gru = nn.GRU(16 * (COEFFICIENTS - 4), 256, batch_first=True)
        self.drop = nn.Dropout(arch.dropout)
        self.dense = nn.Sequential(nn.Linear(256, 128), nn.Linear(128, 256), nn.ReLU())
        self.head = nn.Linear(256, num_classes)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        sequence_BPD, _ = states(self.gru, self._convolved(mel_BMF))
        embedding_BD = self.dense(self.drop(sequence_BPD[:, -1]))
        return Outputs(self.head(embedding_BD), embedding_BD, sequence_BPD)

    def _convolved(self, mel_BMF: Tensor) -> Tensor:
        """The GRU's input x_BPD."""
        return self.convs(self.cepstrum(mel_BMF).unsqueeze(1)).transpose(1, 2).flatten(2)

    def time_steps(self, frames: int, steps: int) -> tuple[float, float]:
        return 3.0, 1.0  # two unpadded convolutions: step k has heard frames k to k + 6

    def stream(self, clip_frames: int) -> NetworkStream:
        """Logits of a step are those of a clip that ends with the last frame it has heard."""
        return RecurrentStream(self._carry_on, frames_of_first_step=MIN_CRNN_FRAMES, look_ahead=MIN_CRNN_FRAMES // 2)

    def _carry_on(self, mel_BMF: Tensor, state: State | None) -> tuple[Tensor, State]:
        sequence_BPD, last_1BU = states(self.gru, self._convolved(mel_BMF), state[0] if state else None)
        return self.head(self.dense(self.drop(sequence_BPD))), (last_1BU,)


class AttentiveRNN(Backbone):
    """Att-RNN and, with four heads, MHAtt-RNN: attention over a BiGRU's steps, queried by the middle one; P = F.

    Google's `att_rnn` and `att_mh_rnn`, after de Andrade et al. 2018 (arXiv 1808.08929) and Rybakov et al. 2020
    (arXiv 2005.06720). Each head projects its own query; keys and values are the BiGRU's outputs, unprojected.
    """

    def __init__(self, arch: OnDevice, *, bands: int, num_classes: int, heads: int) -> None:
        super().__init__()
        self.cepstrum = Cepstrum(bands)
        self.convs = nn.Sequential(
            nn.Conv2d(1, 10, (5, 1), padding=(2, 0)),
            nn.ReLU(),
            nn.BatchNorm2d(10, eps=1e-3),
            nn.Conv2d(10, 1, (5, 1), padding=(2, 0)),
            nn.ReLU(),
            nn.BatchNorm2d(1, eps=1e-3),
        )
        self.gru = nn.GRU(COEFFICIENTS, 128, num_layers=2, batch_first=True, bidirectional=True)
        self.queries = nn.ModuleList(nn.Linear(256, 256) for _ in range(heads))
        self.drop = nn.Dropout(arch.dropout)
        self.dense = nn.Sequential(nn.Linear(heads * 256, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, num_classes)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        sequence_BPD = self._encode(mel_BMF)
        pooled_BHD = self.weights(sequence_BPD) @ sequence_BPD
        embedding_BD = self.dense(self.drop(pooled_BHD.flatten(1)))
        return Outputs(self.head(embedding_BD), embedding_BD, sequence_BPD)

    def log_attention(self, sequence_BPD: Tensor) -> Tensor:
        """The logarithm of the mean over heads (reference/tkd.md section 3); finite where the mean rounds to 0."""
        return self._scores(sequence_BPD).log_softmax(2).logsumexp(1) - math.log(len(self.queries))

    def weights(self, sequence_BPD: Tensor) -> Tensor:
        """Each head's attention a_BHP over the sequence that `outputs` returned: for a loss, without a second pass."""
        return self._scores(sequence_BPD).softmax(dim=2)

    def _scores(self, sequence_BPD: Tensor) -> Tensor:
        """Each head's scores of the steps, BHP, in fp32: unscaled, as Google's."""
        middle_BD = sequence_BPD[:, sequence_BPD.shape[1] // 2]
        query_BHD = torch.stack([query(middle_BD) for query in self.queries], dim=1)
        return (query_BHD @ sequence_BPD.transpose(1, 2)).float()

    def _encode(self, mel_BMF: Tensor) -> Tensor:
        x_BFQ = self.convs(self.cepstrum(mel_BMF).unsqueeze(1)).squeeze(1)
        return states(self.gru, x_BFQ)[0]


class TemporalBlock(nn.Module):
    """Two convolutions over time and a shortcut, which is a convolution where channels change and time is halved."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        changes = inputs != outputs
        stride = 2 if changes else 1
        self.convs = nn.Sequential(
            *_convolution(inputs, outputs, kernel=9, stride=stride),
            nn.ReLU(),
            *_convolution(outputs, outputs, kernel=9),
        )
        shortcut = (*_convolution(inputs, outputs, kernel=1, stride=stride), nn.ReLU()) if changes else ()
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x_BDF: Tensor) -> Tensor:
        return (self.convs(x_BDF) + self.shortcut(x_BDF)).relu()


class TemporalResNet(Backbone):
    """TC-ResNet: a residual network of convolutions over time, with coefficients as channels; P = F / 2, rounded up.

    Choi et al. 2019 (arXiv 1904.03814) in the widths of Google's `tc_resnet`. Google's convolutions have biases too,
    which the batch norm after each cancels.
    """

    def __init__(self, arch: OnDevice, *, bands: int, num_classes: int) -> None:
        super().__init__()
        self.cepstrum = Cepstrum(bands, TC_COEFFICIENTS)
        self.stem = nn.Sequential(*_convolution(TC_COEFFICIENTS, CHANNELS[0], kernel=3), nn.ReLU())
        self.blocks = nn.Sequential(*(TemporalBlock(inputs, outputs) for inputs, outputs in pairwise(CHANNELS)))
        self.drop = nn.Dropout(arch.dropout)
        self.head = nn.Linear(CHANNELS[-1], num_classes)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        x_BDP = self.blocks(self.stem(self.cepstrum(mel_BMF).transpose(1, 2)))
        embedding_BD = x_BDP.mean(2)
        return Outputs(self.head(self.drop(embedding_BD)), embedding_BD, x_BDP.transpose(1, 2))


def build(arch: OnDevice, *, bands: int, frames: int, num_classes: int) -> Backbone:
    """Build the variant for any number of frames; CRNN needs 7 (ValueError where clips have fewer)."""
    if arch.variant == "crnn" and frames < MIN_CRNN_FRAMES:
        raise ValueError(
            f"variant = 'crnn': its convolutions need {MIN_CRNN_FRAMES} frames or more, these clips have {frames}; "
            "use longer clips or another variant"
        )
    builders: dict[str, Callable[[], Backbone]] = {
        "lstm_p": lambda: ProjectedLSTM(arch, bands=bands, num_classes=num_classes),
        "tc_resnet": lambda: TemporalResNet(arch, bands=bands, num_classes=num_classes),
        "crnn": lambda: ConvGRU(arch, bands=bands, num_classes=num_classes),
        "att_rnn": lambda: AttentiveRNN(arch, bands=bands, num_classes=num_classes, heads=1),
        "mhatt_rnn": lambda: AttentiveRNN(arch, bands=bands, num_classes=num_classes, heads=4),
    }
    return builders[arch.variant]().apply(_init_like_keras)


def adapt_weights(
    state: dict[str, Tensor], model: Backbone, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit a state dict in our own key names; the last layer is dropped when its classes differ."""
    return fit_head(state, model, head=HEAD, other_classes=other_classes)


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution over time and its batch norm.

    Google's running statistics keep 0.997 of their value per step, for 80,000 steps; ours torch's 0.9, for short runs.
    """
    conv = nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm1d(outputs, eps=1e-3)


def _init_like_keras(module: nn.Module) -> None:
    """Keras's initial weights: Glorot, orthogonal for a GRU's recurrent ones, zero biases, an open forget gate."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GRU):
        initialisers = {"weight_ih": nn.init.xavier_uniform_, "weight_hh": nn.init.orthogonal_}
        for name, parameter in module.named_parameters():  # weight_ih_l0, bias_hh_l1_reverse and the like
            initialisers.get(name.split("_l")[0], nn.init.zeros_)(parameter)
    elif isinstance(module, PeepholeLSTM):
        units = module.project.in_features
        bound = (3 / units) ** 0.5
        nn.init.uniform_(module.peepholes, -bound, bound)
        nn.init.ones_(module.inputs.bias[units : 2 * units])  # the forget gate is open at first, as TensorFlow's
