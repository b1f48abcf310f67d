"""The interface of every family's network: a normalised log-mel in; logits, an embedding and a sequence out.

Axes: B clips, M mel bands, F frames, D features, P steps in time, C tags.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workloads.models.attention import OnBlock


class Outputs(NamedTuple):
    """A network's outputs for a batch: one logit per tag, one vector per clip, and one vector per step in time."""

    logits_BC: Tensor
    embedding_BD: Tensor  # the input of the head, suitable for a linear probe
    sequence_BPD: Tensor  # the deepest map that still has time, for temporal distillation (reference/tkd.md section 3)
    frames_BPC: Tensor | None = None  # one logit per tag and step, of networks that have them (`gives_frames`)


class TokenLayout(NamedTuple):
    """How a Transformer's tokens lie: special ones first, then patches, in rows of equal mel; L tokens in all.

    Tokens of a waveform are one row.
    """

    special: int
    rows: int
    read: slice  # the tokens whose mean the head reads


class NetworkStream(ABC):
    """A network that hears one sound piece by piece and carries its state from each to the next; for inference.

    Not thread-safe: one object for each sound. `look_ahead` counts the frames after the end of a step that must be
    known before its logits are. With `begins_with_clip` the first piece should be as long as a clip.
    """

    look_ahead: int
    begins_with_clip = False

    @abstractmethod
    def push(self, mel_BMF: Tensor, *, last: bool) -> Tensor:
        """Logits_BPC of the steps that this piece completes, in order, maybe none; after the `last` piece of all."""


class Backbone(nn.Module, ABC):
    """A family's network; subclasses define `outputs`, Transformers `token_layout` and `hook_attention`."""

    has_positions = False  # for the steps of a clip: to take clips of another length changes them

    @property
    def token_layout(self) -> TokenLayout | None:
        """How the tokens lie; None where the network is no Transformer."""
        return None

    def hook_attention(self, on_block: OnBlock) -> list[RemovableHandle]:
        """Tell `on_block` of each block of a Transformer that runs, in their order, until the hooks are removed."""
        raise NotImplementedError(
            f"{type(self).__name__} has a token_layout and does not say what its blocks attend to"
        )

    def log_attention(self, sequence_BPD: Tensor) -> Tensor | None:
        """Logarithms of the weights a_BP with which the network itself sums up its sequence; None: it has none."""
        return None

    def time_steps(self, frames: int, steps: int) -> tuple[float, float]:
        """Where the steps of the sequence are: the frame with which the first one begins, and the frames of a step.

        By default as convolutions place them that keep a length at stride 1: step k lies around frame k s, with s = 2,
        4, 8 and so on in all.
        """
        stride = 2 ** math.ceil(math.log2(frames / steps))
        return (1 - stride) / 2, stride

    def stream(self, clip_frames: int) -> NetworkStream | None:
        """A new stream through this network, trained on clips of `clip_frames`; None: it needs a clip as a whole."""
        return None

    @abstractmethod
    def outputs(self, mel_BMF: Tensor) -> Outputs:
        """All outputs, from one pass over a normalised mel_BMF."""

    def forward(self, mel_BMF: Tensor) -> Tensor:
        """Logits_BC of a normalised mel_BMF."""
        return self.outputs(mel_BMF).logits_BC
