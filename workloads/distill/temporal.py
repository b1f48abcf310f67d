"""Edges that carry *when*: the student's steps in time get the weights that the teacher's have.

The student's weights over its own steps come from a query that trains with it and is not delivered, or from attention
that it has anyway; the teacher's profile (`workloads/models/profiles.py`) is put on the student's steps by seconds.
Steps without sound count for neither. Sources: reference/tkd.md sections 3, 4 and 9.4.

Axes: B clips of a shard, T samples, P steps of the teacher, Q steps of the student, D features of a step.
"""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from workloads.data.shard import Shard
from workloads.models.backbone import Backbone
from workloads.models.profiles import EPSILON, TimeGrid
from workloads.models.tagger import Tagger, outputs_of_silence


class TimeQuery(nn.Module):
    """One query q of the student's sequence: scores_BQ = sequence_BQD q / sqrt(D), equal at the start (q = 0)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))

    def forward(self, sequence_BQD: Tensor) -> Tensor:
        return sequence_BQD @ self.query / math.sqrt(len(self.query))


class OwnAttention(nn.Module):
    """The logarithm of the attention over time that the student's network has anyway; no parameters of its own."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._backbone = (backbone,)  # in a tuple: as a submodule its parameters would be this module's too

    def forward(self, sequence_BQD: Tensor) -> Tensor:
        log_BQ = self._backbone[0].log_attention(sequence_BQD)
        assert log_BQ is not None
        return log_BQ


def build_time_head(tagger: Tagger, edge: str) -> nn.Module:
    """What gives the scores_BQ of a student's steps.

    Raises ValueError, naming the edge, where a clip is a single step.
    """
    sequence_BQD = outputs_of_silence(tagger).sequence_BPD
    has_own = tagger.backbone.log_attention(sequence_BQD) is not None
    if sequence_BQD.shape[1] == 1:
        raise ValueError(
            f"edges {edge}: carries = 'temporal': a clip of {tagger.clip_seconds:g} s is a single step in time of this "
            "student, which cannot learn when; set data.clip_seconds higher, or choose another student"
        )
    return OwnAttention(tagger.backbone) if has_own else TimeQuery(sequence_BQD.shape[2])


def on_grid(p_BP: Tensor, of: TimeGrid, on: TimeGrid, align: Literal["area", "linear"]) -> Tensor:
    """A profile on other steps, a_BQ, up to a factor. Before its first and after its last step it goes on as there.

    "area" takes from each step the share that overlaps, so no peak is missed. "linear" interpolates between the middles
    of the steps, as the paper does.
    """
    return p_BP @ alignment(of, on, align, p_BP.device)


@lru_cache(maxsize=64)
def alignment(of: TimeGrid, on: TimeGrid, align: str, device: torch.device) -> Tensor:
    """Weights (P, Q) on the device: copied once, since every copy would make a step wait."""
    return (_overlaps if align == "area" else _interpolation)(of, on).to(device)


def _overlaps(of: TimeGrid, on: TimeGrid) -> Tensor:
    """Weights (P, Q): the share of each step of one grid that lies in each step of the other."""
    starts_P1 = (of.first + of.step * torch.arange(of.count, dtype=torch.float64))[:, None]
    ends_P1 = starts_P1 + of.step
    starts_P1[0], ends_P1[-1] = -torch.inf, torch.inf
    starts_1Q = (on.first + on.step * torch.arange(on.count, dtype=torch.float64))[None]
    ends = torch.minimum(ends_P1, starts_1Q + on.step)
    return ((ends - torch.maximum(starts_P1, starts_1Q)).clamp(min=0) / of.step).float()


def _interpolation(of: TimeGrid, on: TimeGrid) -> Tensor:
    """Weights (P, Q) of linear interpolation at the middles of the other grid's steps; constant beyond the ends."""
    middles_Q = on.first + on.step * (torch.arange(on.count, dtype=torch.float64) + 0.5)
    places_Q = ((middles_Q - of.first) / of.step - 0.5).clamp(0, of.count - 1)
    lower_Q = places_Q.floor().clamp(max=max(0, of.count - 2)).long()
    shares_Q = (places_Q - lower_Q).float()
    columns_Q, weights = torch.arange(on.count), torch.zeros(of.count, on.count)
    weights[lower_Q, columns_Q] = 1 - shares_Q
    weights[(lower_Q + 1).clamp(max=of.count - 1), columns_Q] += shares_Q
    return weights


def heard_steps(shard: Shard, grid: TimeGrid, *, rate: int) -> Tensor:
    """Which steps have sound of their clip or of what it is mixed with, heard_BQ; all where none has."""
    clips, samples = shard.x_BT.shape
    starts_Q, ends_Q = step_bounds(grid, rate, samples, shard.x_BT.device)
    within_Q = ends_Q > starts_Q
    sounds = shard.sounds()
    if not sounds:
        return within_Q.expand(clips, -1)
    heard_BQ = torch.zeros(clips, grid.count, dtype=torch.bool, device=within_Q.device)
    for sound_B2 in sounds:  # a rolled sound may go on at the beginning: it meets a step if either begins in the other
        begin_B1, length_B1 = sound_B2[:, :1], sound_B2[:, 1:]
        meets_BQ = ((starts_Q - begin_B1) % samples < length_B1) | ((begin_B1 - starts_Q) % samples < ends_Q - starts_Q)
        heard_BQ = heard_BQ | (meets_BQ & within_Q & (length_B1 > 0))
    return heard_BQ | ~heard_BQ.any(1, keepdim=True)


@lru_cache(maxsize=64)
def step_bounds(grid: TimeGrid, rate: int, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The samples with which steps begin, and before which they end, within a clip; on the device, as `alignment`."""
    bounds = (grid.first + grid.step * torch.arange(grid.count + 1, dtype=torch.float64)) * rate
    bounds = bounds.round().clamp(0, samples).long().to(device)
    return bounds[:-1], bounds[1:]


def target_profile(a_BQ: Tensor, heard_BQ: Tensor) -> Tensor:
    """The teacher's distribution over the steps that have sound: EPSILON at the least there, 0 elsewhere."""
    a_BQ = a_BQ.float().masked_fill(~heard_BQ, 0)
    a_BQ = a_BQ / a_BQ.sum(1, keepdim=True).clamp(min=EPSILON) + EPSILON * heard_BQ
    return a_BQ / a_BQ.sum(1, keepdim=True)


def temporal_loss(scores_BQ: Tensor, target_BQ: Tensor, heard_BQ: Tensor) -> Tensor:
    """KL_B(target || softmax of the student's scores over the steps that have sound), in fp32."""
    log_student_BQ = scores_BQ.float().masked_fill(~heard_BQ, -torch.inf).log_softmax(1).masked_fill(~heard_BQ, 0)
    return (torch.xlogy(target_BQ, target_BQ) - target_BQ * log_student_BQ).sum(1)


def flatness(target_BQ: Tensor, heard_BQ: Tensor) -> Tensor:
    """The entropy of each profile over the largest that it can have: 1 for a flat one, 0 for a peak of one step.

    1 as well where only one step has sound: that says nothing.
    """
    entropy_B, steps_B = -torch.xlogy(target_BQ, target_BQ).sum(1), heard_BQ.sum(1)
    return torch.where(steps_B > 1, entropy_B / steps_B.clamp(min=2).log(), 1.0)
