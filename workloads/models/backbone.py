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


class Backbone(nn.Module, ABC):
    """A family's network; subclasses define `outputs`, Transformers `token_layout` and `hook_attention`."""

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

    @abstractmethod
    def outputs(self, mel_BMF: Tensor) -> Outputs:
        """All outputs, from one pass over a normalised mel_BMF."""

    def forward(self, mel_BMF: Tensor) -> Tensor:
        """Logits_BC of a normalised mel_BMF."""
        return self.outputs(mel_BMF).logits_BC
