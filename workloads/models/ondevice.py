"""The five keyword spotters for small devices that TKD teaches, as Google sized them (reference/tkd.md section 5).

Sizes and first weights are those of Google's kws_streaming, where all five read cepstra: here the cosine transform is
the network's first, fixed layer, so that they share one log-mel. Knows no front end and no training.

Axes: B clips, M mel bands, F frames, K cepstral coefficients, P steps in time, D features, U units, H heads, C tags;
of maps x_BDFK the D are channels.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchaudio.functional import create_dct

from workloads.config.architectures import OnDevice
from workloads.models.backbone import Backbone, Outputs
from workloads.models.fit import fit_head

HEAD = ("head.weight", "head.bias")
COEFFICIENTS, TC_COEFFICIENTS = 20, 40  # of the recurrent ones, of TC-ResNet
UNITS, PROJECTED = 500, 200  # LSTM-P
CHANNELS = (50, 50, 50, 50, 50, 72, 72)  # TC-ResNet
SHORTEST_CRNN = 7  # frames that its two convolutions, unpadded as in a stream, look at for one step


class Cepstrum(nn.Module):
    """The first coefficients of the orthonormal DCT-II over the bands: mel_BMF to x_BFK, a constant, not a weight.

    In float32, also inside autocast: the first coefficient is large, half precision would blur what it is made of.
    """

    dct_MK: Tensor

    def __init__(self, bands: int, coefficients: int = COEFFICIENTS) -> None:
        super().__init__()
        assert coefficients <= bands, (coefficients, bands)
        self.register_buffer("dct_MK", create_dct(coefficients, bands, norm="ortho"), persistent=False)

    def forward(self, mel_BMF: Tensor) -> Tensor:
        with torch.autocast(mel_BMF.device.type, enabled=False):
            return mel_BMF.float().transpose(1, 2) @ self.dct_MK


class PeepholeLSTM(nn.Module):
    """An LSTM whose gates also see the cell, and whose state is projected down: x_BPD to states_BPD.

    Sak, Senior, Beaufays 2014 (arXiv 1402.1128), the cell behind LSTM-P; torch's LSTM projects but has no peepholes.
    Gates stand in torch's order: input, forget, new value, output.
    """

    def __init__(self, inputs: int, units: int, projected: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(inputs, 4 * units)
        self.recurrent = nn.Linear(projected, 4 * units, bias=False)
        self.peepholes = nn.Parameter(torch.empty(3, units))  # of the input, forget and output gate
        self.project = nn.Linear(units, projected, bias=False)

    def forward(self, x_BPD: Tensor) -> Tensor:
        state_BD = x_BPD.new_zeros(x_BPD.shape[0], self.project.out_features)
        cell_BU = x_BPD.new_zeros(x_BPD.shape[0], self.project.in_features)
        see_in, see_forget, see_out = self.peepholes
        states = []
        for fed in self.inputs(x_BPD).unbind(1):  # what the input says is known for all steps at once
            take, keep, new, show = (fed + self.recurrent(state_BD)).chunk(4, dim=1)
            take, keep = (take + see_in * cell_BU).sigmoid(), (keep + see_forget * cell_BU).sigmoid()
            cell_BU = keep * cell_BU + take * new.tanh()
            state_BD = self.project((show + see_out * cell_BU).sigmoid() * cell_BU.tanh())
            states.append(state_BD)
        return torch.stack(states, dim=1)


class ProjectedLSTM(Backbone):
    """LSTM-P: one peephole LSTM over the cepstra, whose last state tells the tags.

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


class ConvGRU(Backbone):
    """CRNN: two convolutions, a GRU over time, and dense layers that read its last output; P = F - 6.

    Google's `crnn`, after Arik et al. 2017 (arXiv 1703.05390).
    """

    def __init__(self, arch: OnDevice, *, bands: int, num_classes: int) -> None:
        super().__init__()
        self.cepstrum = Cepstrum(bands)
        self.look = nn.Sequential(nn.Conv2d(1, 16, (3, 3)), nn.ReLU(), nn.Conv2d(16, 16, (5, 3)), nn.ReLU())
        self.gru = nn.GRU(16 * (COEFFICIENTS - 4), 256, batch_first=True)
        self.drop = nn.Dropout(arch.dropout)
        self.dense = nn.Sequential(nn.Linear(256, 128), nn.Linear(128, 256), nn.ReLU())
        self.head = nn.Linear(256, num_classes)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        x_BDFK = self.look(self.cepstrum(mel_BMF).unsqueeze(1))
        sequence_BPD, _ = self.gru(x_BDFK.transpose(1, 2).flatten(2))
        embedding_BD = self.dense(self.drop(sequence_BPD[:, -1]))
        return Outputs(self.head(embedding_BD), embedding_BD, sequence_BPD)


class AttentiveRNN(Backbone):
    """Att-RNN and, with four heads, MHAtt-RNN: the middle step of a BiGRU asks which of all steps matter; P = F.

    Google's `att_rnn` and `att_mh_rnn`, after de Andrade et al. 2018 (arXiv 1808.08929) and Rybakov et al. 2020
    (arXiv 2005.06720). Every head has a query of its own; keys and values are the BiGRU's outputs as they are.
    """

    def __init__(self, arch: OnDevice, *, bands: int, num_classes: int, heads: int) -> None:
        super().__init__()
        self.cepstrum = Cepstrum(bands)
        self.look = nn.Sequential(
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
        sequence_BPD = self._listen(mel_BMF)
        heard_BHD = self.weights(sequence_BPD) @ sequence_BPD
        embedding_BD = self.dense(self.drop(heard_BHD.flatten(1)))
        return Outputs(self.head(embedding_BD), embedding_BD, sequence_BPD)

    def attention(self, mel_BMF: Tensor) -> Tensor:
        """How much each step matters, a_BP: the mean over heads, rows sum to 1 (reference/tkd.md section 3)."""
        return self.weights(self._listen(mel_BMF)).mean(1)

    def weights(self, sequence_BPD: Tensor) -> Tensor:
        """Each head's attention a_BHP over the sequence that `outputs` gave: for a loss, without a second pass."""
        middle_BD = sequence_BPD[:, sequence_BPD.shape[1] // 2]
        query_BHD = torch.stack([query(middle_BD) for query in self.queries], dim=1)
        return (query_BHD @ sequence_BPD.transpose(1, 2)).float().softmax(dim=2)  # unscaled, as Google's

    def _listen(self, mel_BMF: Tensor) -> Tensor:
        x_BFK = self.look(self.cepstrum(mel_BMF).unsqueeze(1)).squeeze(1)
        return self.gru(x_BFK)[0]


class TemporalBlock(nn.Module):
    """Two convolutions over time around a shortcut, which is one too where channels change and time is halved."""

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
    which the batch norm behind each takes away again.
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
    """Build the variant; it takes any number of frames, but CRNN needs 7 (ValueError where clips have fewer)."""
    if arch.variant == "crnn" and frames < SHORTEST_CRNN:
        raise ValueError(
            f"variant = 'crnn': its convolutions need {SHORTEST_CRNN} frames or more, these clips have {frames}; "
            "use longer clips or another variant"
        )
    builders: dict[str, Callable[[], Backbone]] = {
        "lstm_p": lambda: ProjectedLSTM(arch, bands=bands, num_classes=num_classes),
        "tc_resnet": lambda: TemporalResNet(arch, bands=bands, num_classes=num_classes),
        "crnn": lambda: ConvGRU(arch, bands=bands, num_classes=num_classes),
        "att_rnn": lambda: AttentiveRNN(arch, bands=bands, num_classes=num_classes, heads=1),
        "mhatt_rnn": lambda: AttentiveRNN(arch, bands=bands, num_classes=num_classes, heads=4),
    }
    return builders[arch.variant]().apply(_start_like_keras)


def adapt_weights(
    state: dict[str, Tensor], model: Backbone, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take a state dict in our own key names; the last layer is dropped when it tells other classes apart."""
    return fit_head(state, model, head=HEAD, other_classes=other_classes)


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution over time and its batch norm.

    Google's running statistics keep 0.997 of themselves, for 80,000 steps; ours keep torch's 0.9, for short runs.
    """
    conv = nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm1d(outputs, eps=1e-3)


def _start_like_keras(module: nn.Module) -> None:
    """First weights as Keras draws them: Glorot, orthogonal between a GRU's steps, no bias, a cell that remembers."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GRU):
        starts = {"weight_ih": nn.init.xavier_uniform_, "weight_hh": nn.init.orthogonal_}
        for name, parameter in module.named_parameters():  # weight_ih_l0, bias_hh_l1_reverse and the like
            starts.get(name.split("_l")[0], nn.init.zeros_)(parameter)
    elif isinstance(module, PeepholeLSTM):
        units = module.project.in_features
        bound = (3 / units) ** 0.5
        nn.init.uniform_(module.peepholes, -bound, bound)
        nn.init.ones_(module.inputs.bias[units : 2 * units])  # the forget gate starts open, as TensorFlow's
