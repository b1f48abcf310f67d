"""The loss of a student: labels, and distillation along its edges, with per-clip gates.

Axes: B clips of a shard, C tags. `labels` is "single" (one tag per clip, softmax) or "multi" (a sigmoid per tag).
Losses are per clip and in fp32, so that gates can weigh clips one by one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.config.recipe import Edge
from workloads.models.probabilities import probabilities


@dataclass(frozen=True)
class EdgeTerm:
    """One edge in one step: its weight in this step and the teacher's raw logits_BC."""

    edge: Edge
    weight: float
    teacher_BC: Tensor


def student_loss(
    logits_BC: Tensor, y_BC: Tensor, terms: list[EdgeTerm], *, labels: str, smoothing: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """A student's loss, a mean over clips, and its parts by metric name.

    Per clip L = (1 - sum w) L_label + sum w L_KD over the student's edges, where w is the edge's weight on clips for
    which its gate is open, else 0 (CMKD's loss, reference/cmkd.md 1.1, for any number of teachers).
    """
    label_B = label_loss(logits_BC, y_BC, labels=labels, smoothing=smoothing)
    label_weight_B = torch.ones_like(label_B)
    weighted_kd_B = torch.zeros_like(label_B)
    parts = {"label_loss": label_B.mean().detach()}
    for term in terms:
        edge, teacher_BC = term.edge, term.teacher_BC
        if edge.shuffled:  # a control: teacher logits are rolled by one clip
            teacher_BC = teacher_BC.roll(1, 0)
        weight_B = term.weight * open_gate(edge, logits_BC, teacher_BC, y_BC, labels=labels)
        kd_B = kd_loss(logits_BC, teacher_BC, edge, labels=labels)
        label_weight_B = label_weight_B - weight_B
        weighted_kd_B = weighted_kd_B + weight_B * kd_B
        parts[f"{edge.key}/kd_loss"] = kd_B.mean().detach()
        parts[f"{edge.key}/weight"] = weight_B.mean()
    loss = (label_weight_B * label_B + weighted_kd_B).mean()
    return loss, parts


def label_loss(logits_BC: Tensor, y_BC: Tensor, *, labels: str, smoothing: float = 0.0) -> Tensor:
    """Loss_B against labels, which may be mixed: cross entropy (single), or BCE averaged over tags (multi).

    Targets are y(1 - s) + s/C (single) or y(1 - s) + s/2 (multi) with label smoothing s (reference/cmkd.md 1.1). An
    unknown label (NaN, multi only) adds 0 to the mean over tags, as EfficientAT masks OpenMIC's
    (reference/efficientat.md 4).
    """
    logits_BC = logits_BC.float()
    if labels == "single":
        y_BC = y_BC * (1 - smoothing) + smoothing / y_BC.shape[1]
        return -(y_BC * logits_BC.log_softmax(1)).sum(1)
    known_BC = ~y_BC.isnan()
    y_BC = y_BC.nan_to_num() * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits_BC, y_BC, weight=known_BC.float(), reduction="none").mean(1)


def kd_loss(student_BC: Tensor, teacher_BC: Tensor, edge: Edge, *, labels: str) -> Tensor:
    """KL_B(act(teacher / tau) || act(student)): CMKD's distillation term (reference/cmkd.md 1.1).

    Categorical KL (single), or Bernoulli KL averaged over tags (multi). With tau_mode = "both" student logits are
    divided by tau too and the term is multiplied by tau squared (Hinton's form).
    """
    tau = edge.temperature
    teacher_BC, student_BC = teacher_BC.float() / tau, student_BC.float()
    scale = 1.0
    if edge.tau_mode == "both":
        student_BC, scale = student_BC / tau, tau * tau
    return scale * (_categorical_kl if labels == "single" else _bernoulli_kl)(teacher_BC, student_BC)


def _categorical_kl(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """KL_B(p || q) = sum p (ln p - ln q), with p and q the softmax of the two."""
    log_p = teacher_BC.log_softmax(1)
    return (log_p.exp() * (log_p - student_BC.log_softmax(1))).sum(1)


def _bernoulli_kl(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """KL_B(p || q) = mean of p (ln p - ln q) + (1 - p)(ln(1 - p) - ln(1 - q)), with p and q the sigmoid of the two."""
    present = teacher_BC.sigmoid() * (F.logsigmoid(teacher_BC) - F.logsigmoid(student_BC))
    absent = (-teacher_BC).sigmoid() * (F.logsigmoid(-teacher_BC) - F.logsigmoid(-student_BC))
    return (present + absent).mean(1)


def open_gate(edge: Edge, student_BC: Tensor, teacher_BC: Tensor, y_BC: Tensor, *, labels: str) -> Tensor:
    """1 for the clips on which the edge is open, 0 elsewhere, without gradient; shape (B,).

    "better_on_clip" is open where the teacher's label loss is below the student's (Bi-KD, reference/cmkd.md section 3),
    "switokd" follows SwitOKD, "always" is open on every clip.
    """
    with torch.no_grad():
        if edge.gate == "better_on_clip":
            better = label_loss(teacher_BC, y_BC, labels=labels) < label_loss(student_BC, y_BC, labels=labels)
            return better.float()
        if edge.gate == "switokd":
            return _switokd(student_BC, teacher_BC, y_BC, labels).float()
        return torch.ones(len(y_BC), device=y_BC.device)


def _switokd(student_BC: Tensor, teacher_BC: Tensor, y_BC: Tensor, labels: str) -> Tensor:
    """SwitOKD's switch per clip (reference/cmkd.md section 3): closed where the student is too far ahead.

    With L1 distances over known tags, G = |teacher - student|, e_s = |student - y| and e_t = |teacher - y| of
    probabilities, and epsilon = exp(-e_s / (e_s + e_t)): closed where G > e_t - epsilon e_s and e_s < e_t. (The paper's
    teacher is the leader, here the student.) The paper then pauses the leader; here it continues to learn from labels
    and only this edge is switched off, because budgets are fixed when the run starts.
    """
    leader, lagging = probabilities(student_BC.float(), labels), probabilities(teacher_BC.float(), labels)
    known = ~y_BC.isnan()
    leader, lagging, y_BC = leader * known, lagging * known, y_BC.nan_to_num()
    gap = (lagging - leader).abs().sum(1)
    leader_error, lagging_error = (leader - y_BC).abs().sum(1), (lagging - y_BC).abs().sum(1)
    epsilon = torch.exp(-leader_error / (leader_error + lagging_error).clamp_min(1e-12))
    expert = (gap > lagging_error - epsilon * leader_error) & (leader_error < lagging_error)
    return ~expert
