"""The model architectures: one frozen value per family, checked when it is built. Imports nothing heavy.

Sources of the sizes: reference/efficientat.md (MN, DyMN), ced.md, cmkd.md section 2 (EfficientNet, AST), tkd.md
sections 2 and 5 (wav2vec 2.0, the on-device models), frames.md section 5 (FrameMN). `workloads/models/` builds the
networks.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from workloads.config.checked import Checked

MAX_WIDTH = 16  # of a MobileNet: about a billion parameters
MAX_DEPTH = 1000  # blocks of a Transformer
MAX_BLOCK_PARAMETERS = 2_000_000_000  # of all of a Transformer's blocks
MAX_CHANNELS = 8192  # of wav2vec 2.0's convolutions
POSITION_GROUPS = 16  # of wav2vec 2.0's convolution over positions
TIMM_NAME = re.compile(r"[a-z0-9_]+")
# Arguments of timm's that follow from the recipe: a key that sets the same, or why there is none
TIMM_SETS = {
    **{"drop_rate": "dropout", "drop_path_rate": "drop_path"},
    **dict.fromkeys(("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"), "the model's init"),
    **dict.fromkeys(("img_size", "in_chans"), "the front end and the clips"),
    "num_classes": "the data's tags",
}


@dataclass(frozen=True, kw_only=True)
class MN(Checked):
    """MobileNetV3-Large at any width, as EfficientAT uses it (reference/efficientat.md section 1)."""

    family: Literal["mn"]
    width: float = 1.0
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    head: Literal["mlp", "fully_convolutional", "attention"] = "mlp"
    se_axes: tuple[Literal["c", "f", "t"], ...] = ("c",)  # squeeze-and-excitation over channels, mel bands, frames
    se_join: Literal["max", "avg", "add", "min"] = "max"  # how the results of several axes are combined
    dropout: float = 0.2
    bn_momentum: float = 0.01

    def __post_init__(self) -> None:
        _require_mobile(self)
        self._require_distinct("se_axes", "axis")


@dataclass(frozen=True, kw_only=True)
class DyMN(Checked):
    """MN with dynamic blocks, whose weights depend on the clip (reference/efficientat.md section 2)."""

    family: Literal["dymn"]
    width: float = 1.0
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    dropout: float = 0.2
    bn_momentum: float = 0.01
    temperature: float = 30.0  # of the kernel attention at the start; initial weights trained down to 1 need 1
    cooled_after: float = 0.145  # share of the model's own steps at which it is 1: 29 of EfficientAT's 200 epochs

    def __post_init__(self) -> None:
        _require_mobile(self)
        self._require(self.temperature >= 1, "temperature", "must be 1 or more")
        self._require(0 <= self.cooled_after <= 1, "cooled_after", "must be a share of the steps, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class FrameMN(Checked):
    """MN with logits for each step of four frames (reference/frames.md section 5)."""

    family: Literal["frame_mn"]
    width: float = 1.0
    # Logits of a clip: those of its steps pooled, or of a head of their own, over the mean of the steps.
    frame_pool: Literal["max", "linear_softmax", "own_head"] = "linear_softmax"
    bn_momentum: float = 0.01

    def __post_init__(self) -> None:
        self._require_positive("width")
        self._require_at_most(MAX_WIDTH, "width")
        self._require(0 < self.bn_momentum <= 1, "bn_momentum", "must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class DropoutArch(Checked):
    """The settings of networks with dropout and stochastic depth."""

    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        self._require_below_1("dropout", "drop_path")


@dataclass(frozen=True, kw_only=True)
class EfficientNet(DropoutArch):
    """timm's EfficientNet with the mean of the last map as features, as CMKD uses it (reference/cmkd.md 1.2)."""

    family: Literal["efficientnet"]
    variant: Literal["b0", "b2", "lite0"] = "b0"  # lite0: without squeeze-and-excitation, with ReLU6


@dataclass(frozen=True, kw_only=True)
class TransformerArch(DropoutArch):
    """The settings of Transformers over patches."""

    # What the head reads: the clip ("none"), or each step in time, whose logits are pooled to those of the clip.
    frame_pool: Literal["none", "max", "linear_softmax"] = "none"


@dataclass(frozen=True, kw_only=True)
class ViT(TransformerArch):
    """timm's ViT of any size, one input channel, square patches with a stride (reference/cmkd.md 2.1)."""

    family: Literal["vit"]
    dim: int = 192
    depth: int = 12
    heads: int = 3
    patch: int = 16
    stride: int = 16
    pool: Literal["token", "avg"] = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("depth", "heads")
        self._require(self.dim > 0 and self.dim % self.heads == 0, "dim", f"must be a multiple of heads = {self.heads}")
        self._require_at_most(MAX_DEPTH, "depth")
        _require_block_size(self)
        self._require(0 < self.stride <= self.patch, "stride", f"must be 1 to patch = {self.patch}")


@dataclass(frozen=True, kw_only=True)
class AST(TransformerArch):
    """The Audio Spectrogram Transformer: a distilled DeiT over overlapping patches (reference/cmkd.md 2.1)."""

    family: Literal["ast"]
    size: Literal["tiny", "small", "base"] = "base"
    stride: Literal[10, 16] = 10


@dataclass(frozen=True, kw_only=True)
class PaSST(TransformerArch):
    """PaSST: a distilled DeiT of the base size with positions of time and frequency apart (arXiv 2110.05069)."""

    family: Literal["passt"]
    stride: Literal[10, 12, 14, 16] = 10
    depth: int = 12  # 7 of PaSST-L

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("depth")
        self._require_at_most(MAX_DEPTH // 10, "depth")


@dataclass(frozen=True, kw_only=True)
class EAT(TransformerArch):
    """EAT's ViT, which SSLAM shares: computed positions, norms after each part of a block (arXiv 2401.03497)."""

    family: Literal["eat"]
    size: Literal["base", "large"] = "base"
    depth: int = 12  # 24 of the large one

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("depth")
        self._require_at_most(MAX_DEPTH // 10, "depth")


@dataclass(frozen=True, kw_only=True)
class CED(TransformerArch):
    """CED's ViT: few mel bands, time and frequency embeddings apart, clips of any length (reference/ced.md 6)."""

    family: Literal["ced"]
    size: Literal["tiny", "mini", "small", "base"] = "tiny"


@dataclass(frozen=True, kw_only=True)
class OnDevice(Checked):
    """The five small keyword-spotting networks that are TKD's students (reference/tkd.md section 5)."""

    family: Literal["ondevice"]
    variant: Literal["lstm_p", "tc_resnet", "crnn", "att_rnn", "mhatt_rnn"] = "att_rnn"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._require_below_1("dropout")


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2(Checked):
    """wav2vec 2.0, which hears samples and is classified from its first context vector (reference/tkd.md 2 and 5)."""

    family: Literal["wav2vec2"]
    dim: int = 768
    depth: int = 12
    heads: int = 12
    # group: one group norm in the convolutions, layer norms after each part of a block (base and large of
    # LibriSpeech); layer: layer norms in all convolutions, and before each part of a block (LV-60K, XLSR)
    norm: Literal["group", "layer"] = "group"
    channels: int = 512  # of the convolutions
    dropout: float = 0.1
    freeze_features: bool = True  # the convolutions keep their weights, as is usual where pretrained ones are tuned

    def __post_init__(self) -> None:
        self._require_positive("depth", "heads", "channels")
        self._require_at_most(MAX_DEPTH, "depth")
        self._require_at_most(MAX_CHANNELS, "channels")
        multiple = math.lcm(self.heads, POSITION_GROUPS)
        must = f"must be a multiple of heads = {self.heads} and of {POSITION_GROUPS}"
        self._require(self.dim > 0 and self.dim % multiple == 0, "dim", must)
        _require_block_size(self)
        self._require_below_1("dropout")


@dataclass(frozen=True, kw_only=True)
class Timm(DropoutArch):
    """Any network of timm's by its name there (`antiphon models --timm 'convnext*'`), over one channel."""

    family: Literal["timm"]
    name: str
    # further arguments of its constructor, such as {depths = [2, 2, 6, 2]}
    args: dict[str, bool | int | float | str | tuple[int | float, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        must = "must be a name of timm's without the tag of its weights, such as convnext_atto"
        self._require(TIMM_NAME.fullmatch(self.name) is not None, "name", must)
        for key in self.args:
            if key in TIMM_SETS:
                raise ValueError(f"args.{key}: follows from {TIMM_SETS[key]}; leave it out of args")


Arch = MN | DyMN | FrameMN | EfficientNet | ViT | AST | PaSST | EAT | CED | OnDevice | Wav2Vec2 | Timm
WAVEFORM_FAMILIES = ("wav2vec2",)  # they hear samples; all others hear log-mels


def gives_frames(arch: Arch) -> bool:
    """Whether a network gives logits for each step in time beside those of the clip."""
    if isinstance(arch, MN):
        return arch.head == "fully_convolutional"
    return isinstance(arch, FrameMN) or (isinstance(arch, TransformerArch) and arch.frame_pool != "none")


def _require_block_size(arch: ViT | Wav2Vec2) -> None:
    parameters = 12 * arch.dim**2 * arch.depth
    must = f"makes {parameters:,} parameters in depth = {arch.depth} blocks; must make at most"
    arch._require(parameters <= MAX_BLOCK_PARAMETERS, "dim", f"{must} {MAX_BLOCK_PARAMETERS:,}")


def _require_mobile(arch: MN | DyMN) -> None:
    """The checks that MN and DyMN share."""
    arch._require_positive("width")
    arch._require_at_most(MAX_WIDTH, "width")
    arch._require(set(arch.strides) <= {1, 2}, "strides", "each must be 1 or 2")
    arch._require_below_1("dropout")
    arch._require(0 < arch.bn_momentum <= 1, "bn_momentum", "must be above 0 and at most 1")
