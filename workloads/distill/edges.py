"""What passes along an edge: losses, per-clip gates, and where a teacher's logits come from.

Axes: B clips of a shard, C tags. Every loss is per clip and in fp32, so that gates can weigh clips one by one.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.config.recipe import Edge
from workloads.models.probabilities import probabilities


def label_loss(logits_BC: Tensor, y_BC: Tensor, *, labels: str, smoothing: float = 0.0) -> Tensor:
    """Loss_B against (possibly mixed) labels: cross entropy, or BCE averaged over tags; smoothing touches labels only.

    Of several tags an unknown one (NaN) adds nothing, as EfficientAT masks OpenMIC's (reference/efficientat.md 4).

    Smoothed targets are y(1 - s) + s/C for one tag a clip, y(1 - s) + s/2 for several (reference/cmkd.md 1.1).
    """
    logits_BC = logits_BC.float()
    if labels == "single":
        y_BC = y_BC * (1 - smoothing) + smoothing / y_BC.shape[1]
        return -(y_BC * logits_BC.log_softmax(1)).sum(1)
    known_BC = ~y_BC.isnan()
    y_BC = y_BC.nan_to_num() * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits_BC, y_BC, weight=known_BC.float(), reduction="none").mean(1)


def kd_loss(student_BC: Tensor, teacher_BC: Tensor, edge: Edge, *, labels: str) -> Tensor:
    """CMKD's term, KL(act(teacher / tau) || act(student)) per clip (reference/cmkd.md 1.1).

    One tag a clip: categorical KL. Several: Bernoulli KL with its (1 - p) half, averaged over tags. With
    tau_mode = both the student is divided too and the term multiplied by tau squared (Hinton's form).
    """
    tau = edge.temperature
    teacher_BC, student_BC = teacher_BC.float() / tau, student_BC.float()
    scale = 1.0
    if edge.tau_mode == "both":
        student_BC, scale = student_BC / tau, tau * tau
    if labels == "single":
        log_p = teacher_BC.log_softmax(1)
        return scale * (log_p.exp() * (log_p - student_BC.log_softmax(1))).sum(1)
    yes = teacher_BC.sigmoid() * (F.logsigmoid(teacher_BC) - F.logsigmoid(student_BC))
    no = (-teacher_BC).sigmoid() * (F.logsigmoid(-teacher_BC) - F.logsigmoid(-student_BC))
    return scale * (yes + no).mean(1)


def open_gate(edge: Edge, student_BC: Tensor, teacher_BC: Tensor, y_BC: Tensor, *, labels: str) -> Tensor:
    """1 for the clips on which the edge is open, 0 elsewhere, without gradient; shape (B,)."""
    with torch.no_grad():
        if edge.gate == "better_on_clip":
            better = label_loss(teacher_BC, y_BC, labels=labels) < label_loss(student_BC, y_BC, labels=labels)
            return better.float()
        if edge.gate == "switokd":
            return _switokd(student_BC, teacher_BC, y_BC, labels).float()
        return torch.ones(len(y_BC), device=y_BC.device)


def _switokd(student_BC: Tensor, teacher_BC: Tensor, y_BC: Tensor, labels: str) -> Tensor:
    """SwitOKD's switch, clip by clip (reference/cmkd.md section 3): closed where the student runs too far ahead.

    The paper pauses the model that leads; here its labels go on and only the lagging peer's term is switched off,
    because budgets are fixed when the run starts.
    """
    leader, lagging = probabilities(student_BC.float(), labels), probabilities(teacher_BC.float(), labels)
    known = ~y_BC.isnan()
    leader, lagging, y_BC = leader * known, lagging * known, y_BC.nan_to_num()
    gap = (lagging - leader).abs().sum(1)
    leader_error, lagging_error = (leader - y_BC).abs().sum(1), (lagging - y_BC).abs().sum(1)
    epsilon = torch.exp(-leader_error / (leader_error + lagging_error).clamp_min(1e-12))
    expert = (gap > lagging_error - epsilon * leader_error) & (leader_error < lagging_error)
    return ~expert


@dataclass(frozen=True)
class EdgeTerm:
    """What one edge says in one step: the weight of this step and the teacher's logits_BC."""

    edge: Edge
    weight: float
    teacher_BC: Tensor


def student_loss(
    logits_BC: Tensor, y_BC: Tensor, terms: list[EdgeTerm], *, labels: str, smoothing: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """A student's whole loss, averaged over clips, and its parts by metric name.

    Per clip, labels weigh 1 minus the weights of the edges open on it: L = (1 - sum w) L_label + sum w KD.
    """
    label_B = label_loss(logits_BC, y_BC, labels=labels, smoothing=smoothing)
    label_weight_B = torch.ones_like(label_B)
    taught_B = torch.zeros_like(label_B)
    parts = {"label_loss": label_B.mean().detach()}
    for term in terms:
        edge, teacher_BC = term.edge, term.teacher_BC
        if edge.shuffled:
            teacher_BC = teacher_BC.roll(1, 0)
        weight_B = term.weight * open_gate(edge, logits_BC, teacher_BC, y_BC, labels=labels)
        kd_B = kd_loss(logits_BC, teacher_BC, edge, labels=labels)
        label_weight_B = label_weight_B - weight_B
        taught_B = taught_B + weight_B * kd_B
        parts[f"{edge.key}/kd_loss"] = kd_B.mean().detach()
        parts[f"{edge.key}/weight"] = weight_B.mean()
    loss = (label_weight_B * label_B + taught_B).mean()
    return loss, parts
