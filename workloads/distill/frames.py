"""Edges that carry when each tag sounds, and labels that say it: losses over the steps of a student's frame logits.

A teacher's probabilities are put on the student's steps by seconds: averaged where the teacher has more steps, else
interpolated. Steps without sound, and those in a time mask of the view, count for no loss. Sources: reference/frames.md
sections 3 and 7.

Axes: B clips of a shard, P steps of the teacher, Q steps of the student, C tags.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.config.edge import Edge
from workloads.data.shard import Shard
from workloads.distill.temporal import alignment, heard_steps, step_bounds
from workloads.models.profiles import TimeGrid


@dataclass(frozen=True)
class FrameTerm:
    """An edge that carries frames in one step: the student's logits, the teacher's probabilities on the student's
    steps, and which of these count."""

    edge: Edge
    weight: float
    frames_BQC: Tensor
    target_BQC: Tensor
    counted_BQ: Tensor


@dataclass(frozen=True)
class FrameLabels:
    """When the tags of the clips sound: the student's logits, labels of its steps, the known share of each clip's tags,
    and which steps count."""

    frames_BQC: Tensor
    y_BQC: Tensor
    known_BC: Tensor
    counted_BQ: Tensor


def frame_target(edge: Edge, teacher_BPC: Tensor, of: TimeGrid, on: TimeGrid, shard: Shard, *, rate: int) -> Tensor:
    """The probabilities target_BQC of a teacher's frame logits, on the student's steps; `rate` is that of the clips.

    A teacher that hears the student's view needs nothing carried along: it heard the roll, the masks and the mixture.
    The frames of a model that hears clips without augmentation are rolled as the clips are. Those of a store belong
    to the view already.
    """
    p_BPC = (teacher_BPC.float() / edge.temperature).sigmoid()
    if edge.view == "clean" and not edge.store:
        p_BPC = rolled_frames(p_BPC, of, shard, rate=rate)
    return frames_on_grid(p_BPC, of, on)


def rolled_frames(values_BPC: Tensor, grid: TimeGrid, shard: Shard, *, rate: int) -> Tensor:
    """Values of steps of clips that were not rolled, rolled as the clips of the shard are: to the nearest step."""
    if shard.shift_B is None:
        return values_BPC
    duration, device = shard.x_BT.shape[1] / rate, values_BPC.device
    middles_P = grid.first + grid.step * (torch.arange(grid.count, dtype=torch.float64, device=device) + 0.5)
    heard_at_BP = (middles_P - shard.shift_B[:, None] / rate) % duration
    step_BP = ((heard_at_BP - grid.first) / grid.step + 1e-6).floor().long().clamp(0, grid.count - 1)
    return values_BPC.gather(1, step_BP[:, :, None].expand(values_BPC.shape))


def frames_on_grid(values_BPC: Tensor, of: TimeGrid, on: TimeGrid) -> Tensor:
    """Values of steps on other steps, BQC: the mean over those that overlap, or interpolated where these are longer.

    Before the first and after the last step they go on as there, so constants stay constant.
    """
    if of == on:
        return values_BPC
    weights_PQ = alignment(of, on, "area" if of.step < on.step else "linear", values_BPC.device)
    return torch.einsum("bpc,pq->bqc", values_BPC, weights_PQ / weights_PQ.sum(0))


def counted_steps(shard: Shard, grid: TimeGrid, *, rate: int) -> Tensor:
    """Which steps count, counted_BQ: those that have sound and whose middle no time mask covers."""
    duration = shard.x_BT.shape[1] / rate
    middles_Q = grid.first + grid.step * (torch.arange(grid.count, device=shard.masks_B4.device) + 0.5)
    start_B1, width_B1 = shard.masks_B4[:, :1], shard.masks_B4[:, 1:2]
    masked_BQ = (middles_Q / duration >= start_B1) & (middles_Q / duration < start_B1 + width_B1)
    return heard_steps(shard, grid, rate=rate) & ~masked_BQ


def frame_labels(frames_BQC: Tensor, shard: Shard, grid: TimeGrid, *, rate: int) -> FrameLabels:
    """The labels of a student's steps: what the events of the shard's clips say in their views."""
    assert shard.events is not None, "a model of the run has frame_labels, so shards come with events"
    starts_Q, ends_Q = step_bounds(grid, rate, shard.x_BT.shape[1], shard.x_BT.device)
    y_BQC, known_BC = shard.events.targets(starts_Q, ends_Q)
    return FrameLabels(frames_BQC, y_BQC, known_BC, counted_steps(shard, grid, rate=rate))


def frame_loss(frames_BQC: Tensor, target_BQC: Tensor, counted_BQ: Tensor, *, known_BC: Tensor | None = None) -> Tensor:
    """BCE_B of frame logits against probabilities, in fp32: the mean over tags and over the steps that count.

    `known_BC` weighs tags, as `label_loss` does. 0 for a clip of which no step counts.
    """
    weight_B1C = None if known_BC is None else known_BC[:, None]
    loss_BQC = F.binary_cross_entropy_with_logits(frames_BQC.float(), target_BQC, weight=weight_B1C, reduction="none")
    return (loss_BQC.mean(2) * counted_BQ).sum(1) / counted_BQ.sum(1).clamp(min=1)


def frame_kd_loss(term: FrameTerm) -> Tensor:
    """Loss_B of an edge: BCE, or KL, which is BCE less the entropy of the teacher and has the same gradient."""
    loss_B = frame_loss(term.frames_BQC, term.target_BQC, term.counted_BQ)
    if term.edge.loss == "bce":
        return loss_B
    p_BQC = term.target_BQC
    entropy_BQ = -(torch.xlogy(p_BQC, p_BQC) + torch.xlogy(1 - p_BQC, 1 - p_BQC)).mean(2)
    return loss_B - (entropy_BQ * term.counted_BQ).sum(1) / term.counted_BQ.sum(1).clamp(min=1)
