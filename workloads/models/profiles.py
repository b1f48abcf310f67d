"""When a network listens: one distribution over the steps in time of its sequence, for each clip.

Of a Transformer it is the rollout of its attention, with frequency summed out (reference/tkd.md sections 2 and 9.2), of
a network with attention of its own over time that attention, of any other the energy of its sequence (9.2, point 5).
Does not depend on training or teachers.

Axes: B clips, M mel bands, F frames, H heads, L tokens (special ones first), E features of a head, D features of a
step, P steps in time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workloads.models.attention import Attended
from workloads.models.backbone import Outputs, TokenLayout
from workloads.models.tagger import Tagger

QUERIES_AT_ONCE = 128
EPSILON = 1e-6  # of probability that every step has, so that logarithms are finite (reference/tkd.md 9.4)


@dataclass(frozen=True)
class TimeGrid:
    """Where the steps of a sequence are in time: step k lasts from first + k step to first + (k + 1) step seconds."""

    first: float
    step: float
    count: int


def time_grid(tagger: Tagger, steps: int, *, frames: int | None = None) -> TimeGrid:
    """Where the `steps` steps of a tagger's sequence are; frame k of its front end counts as k to k + 1 hops.

    The windows that frames are computed from lie up to 10 ms beside that: their middles half a hop earlier, of
    `kaldi128` 0.75 hops later. So steps of two front ends are matched to within 17 ms.

    `frames` of its front end make so many steps; None: those of its own clips.
    """
    hop_s = tagger.front_end.hop / tagger.front_end.rate
    first, step = tagger.backbone.time_steps(frames or tagger.num_frames, steps)
    return TimeGrid(first * hop_s, step * hop_s, steps)


def outputs_and_profile(tagger: Tagger, mel_BMF: Tensor) -> tuple[Outputs, Tensor]:
    """All outputs of a tagger for its log-mel, in training or eval mode, and its profile p_BP; from one forward.

    The profile is fp32, has no gradient, and its rows sum to 1.
    """
    layout = tagger.backbone.token_layout
    if layout is not None:
        with _rollout(tagger, layout) as rollout:
            outputs = tagger.outputs(mel_BMF)
        return outputs, _normalised(rollout.profile(len(mel_BMF))[:, : outputs.sequence_BPD.shape[1]])
    outputs = tagger.outputs(mel_BMF)
    with torch.no_grad():
        log_BP = tagger.backbone.log_attention(outputs.sequence_BPD.detach().float())
    return outputs, energy_profile(outputs.sequence_BPD) if log_BP is None else _normalised(log_BP.exp())


def profile_kind(tagger: Tagger, outputs: Outputs) -> Literal["rollout", "attention", "energy"]:
    """What the profile of a tagger is made of; of the same outputs as `outputs_and_profile` returned."""
    if tagger.backbone.token_layout is not None:
        return "rollout"
    with torch.no_grad():
        return "energy" if tagger.backbone.log_attention(outputs.sequence_BPD) is None else "attention"


def energy_profile(sequence_BPD: Tensor) -> Tensor:
    """The energy of each step of a sequence, as a distribution p_BP in fp32 without gradient."""
    return _normalised(sequence_BPD.detach().float().square().mean(2))


def _normalised(p_BP: Tensor) -> Tensor:
    """The distribution with these proportions; uniform where all are 0. Every step has at least about EPSILON."""
    p_BP = p_BP / p_BP.sum(1, keepdim=True).clamp(min=torch.finfo(p_BP.dtype).tiny) + EPSILON
    return p_BP / p_BP.sum(1, keepdim=True)


class _Rollout:
    """The rollout of the blocks that have run so far, times the matrix that sums tokens by their step in time.

    With A the mean of a block's attention over heads, the rollout R is multiplied by (A + I) / 2 at every block. Only
    R S is needed, S being 1 where a token belongs to a step: L x P numbers. A block that stochastic depth leaves out
    for a clip changes nothing of its R.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self._layout = layout
        self._mass_BLP: Tensor | None = None

    def fold(self, block: Attended) -> None:
        """Add one block, the next that has run."""
        batch, _, tokens, _ = block.query_BHLE.shape
        device = block.query_BHLE.device
        if self._mass_BLP is None:
            self._mass_BLP = self._steps_of_tokens(tokens, device).expand(batch, -1, -1)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            attended_BLP = _attended(block.query_BHLE, block.key_BHLE, self._mass_BLP, scale=block.scale)
            folded_BLP = (attended_BLP + self._mass_BLP) / 2
        if block.kept_B is not None:
            folded_BLP = torch.where(block.kept_B[:, None, None], folded_BLP, self._mass_BLP)
        self._mass_BLP = folded_BLP

    def profile(self, clips: int) -> Tensor:
        """Proportions p_BP: the mean over the tokens that the head reads; a clip's windows one after the other."""
        assert self._mass_BLP is not None, "no block has run"
        p_BP = self._mass_BLP[:, self._layout.read].mean(1)
        return torch.cat(p_BP.split(clips), dim=1)  # several windows: all clips of the first one come first

    def _steps_of_tokens(self, tokens: int, device: torch.device) -> Tensor:
        """S (1, L, P): 1 where a token lies in a step. Patches lie in rows of equal mel; special tokens in no step."""
        steps = (tokens - self._layout.special) // self._layout.rows
        patches = torch.eye(steps, device=device).repeat(self._layout.rows, 1)
        return torch.cat([patches.new_zeros(self._layout.special, steps), patches]).unsqueeze(0)


def _attended(query_BHLE: Tensor, key_BHLE: Tensor, values_BLP: Tensor, *, scale: float) -> Tensor:
    """(A values)_BLP, A being the attention's mean over heads; for some queries at once, so that A is never whole."""
    parts = []
    for query in query_BHLE.split(QUERIES_AT_ONCE, dim=2):
        weights = (query @ key_BHLE.transpose(2, 3) * scale).softmax(3).mean(1)
        parts.append(weights @ values_BLP)
    return torch.cat(parts, dim=1)


@contextmanager
def _rollout(tagger: Tagger, layout: TokenLayout) -> Iterator[_Rollout]:
    """The rollout of the one forward within this context."""
    rollout = _Rollout(layout)
    hooks = tagger.backbone.hook_attention(rollout.fold)
    try:
        yield rollout
    finally:
        for hook in hooks:
            hook.remove()
