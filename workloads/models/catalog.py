"""The published models by name: architecture, and the front end each was published with. Imports nothing heavy."""

from typing import Any, Literal

from workloads.config.architectures import AST, CED, EAT, MN, DyMN, EfficientNet, FrameMN, OnDevice, PaSST, Wav2Vec2
from workloads.config.recipe import FrontEnd, Model

SECONDS, CLASSES = 10.0, 527  # of AudioSet's clips and tags, for which published sizes are given
PASST_STRIDES: tuple[Literal[10, 12, 14, 16], ...] = (10, 12, 14, 16)
MN_WIDTHS = (0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0, 3.0, 4.0)

_efficientat, _ced, _kaldi = FrontEnd(kind="efficientat128"), FrontEnd(kind="ced64"), FrontEnd(kind="kaldi128")
_ast, _ondevice = FrontEnd(kind="kaldi128", frames=1024), FrontEnd(kind="logmel40")

_eat = FrontEnd(kind="kaldi128", frames=1024, mean=-4.268, std=2 * 4.569)
_sed = FrontEnd(kind="pretrainedsed128")
_waveform, _normalised = FrontEnd(kind="waveform16k"), FrontEnd(kind="waveform16k_norm")
_large: Any = {"dim": 1024, "depth": 24, "heads": 16}

CATALOG: dict[str, Model] = {
    **{
        f"mn{round(10 * width):02}": Model(arch=MN(family="mn", width=width), front_end=_efficientat)
        for width in MN_WIDTHS
    },
    **{
        f"dymn{round(10 * width):02}": Model(arch=DyMN(family="dymn", width=width), front_end=_efficientat)
        for width in (0.4, 1.0, 2.0)
    },
    **{
        f"frame_mn{round(10 * width):02}": Model(arch=FrameMN(family="frame_mn", width=width), front_end=_sed)
        for width in (0.6, 1.0)
    },
    "efficientnet_b0": Model(arch=EfficientNet(family="efficientnet", variant="b0"), front_end=_kaldi),
    "efficientnet_b2": Model(arch=EfficientNet(family="efficientnet", variant="b2"), front_end=_kaldi),
    "ast_tiny": Model(arch=AST(family="ast", size="tiny"), front_end=_ast),
    "ast_small": Model(arch=AST(family="ast", size="small"), front_end=_ast),
    "ast_base": Model(arch=AST(family="ast", size="base"), front_end=_ast),
    **{
        f"passt_s{stride}": Model(arch=PaSST(family="passt", stride=stride), front_end=_efficientat)
        for stride in PASST_STRIDES
    },
    "eat_base": Model(arch=EAT(family="eat"), front_end=_eat),
    "eat_large": Model(arch=EAT(family="eat", size="large", depth=24), front_end=_eat),
    "ced_tiny": Model(arch=CED(family="ced", size="tiny"), front_end=_ced),
    "ced_mini": Model(arch=CED(family="ced", size="mini"), front_end=_ced),
    "ced_small": Model(arch=CED(family="ced", size="small"), front_end=_ced),
    "ced_base": Model(arch=CED(family="ced", size="base"), front_end=_ced),
    "lstm_p": Model(arch=OnDevice(family="ondevice", variant="lstm_p"), front_end=_ondevice),
    "tc_resnet": Model(arch=OnDevice(family="ondevice", variant="tc_resnet"), front_end=_ondevice),
    "crnn": Model(arch=OnDevice(family="ondevice", variant="crnn"), front_end=_ondevice),
    "att_rnn": Model(arch=OnDevice(family="ondevice", variant="att_rnn"), front_end=_ondevice),
    "mhatt_rnn": Model(arch=OnDevice(family="ondevice", variant="mhatt_rnn"), front_end=_ondevice),
    "wav2vec2_base": Model(arch=Wav2Vec2(family="wav2vec2"), front_end=_waveform),
    "wav2vec2_large": Model(arch=Wav2Vec2(family="wav2vec2", **_large), front_end=_waveform),
    # XLSR-53; LV-60K and XLS-R of 0.3 billion parameters are the same network
    "wav2vec2_xlsr53": Model(arch=Wav2Vec2(family="wav2vec2", **_large, norm="layer"), front_end=_normalised),
}
