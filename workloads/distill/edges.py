"""The loss of a student: labels, and distillation along its edges, with per-clip gates.

Axes: B clips of a shard, C tags, D features of the teacher's embedding, Q steps of the student in time. `labels` is
"single" (one tag per clip, softmax) or "multi" (a sigmoid per tag). Losses are per clip and in fp32, so that gates can
weigh clips one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workloads.config.edge import Edge
from workloads.distill.frames import FrameLabels, FrameTerm, frame_kd_loss, frame_loss
from workloads.distill.temporal import flatness, target_profile, temporal_loss
from workloads.models.probabilities import probabilities

CERTAIN = 100.0  # a logit whose probability is 1 in fp32, and whose negative one's is 0


@dataclass(frozen=True)
class EdgeTerm:
    """One edge in one step: its weight in this step and the teacher's raw logits_BC, as the student is taught them."""

    edge: Edge
    weight: float
    teacher_BC: Tensor


@dataclass(frozen=True)
class EmbeddingTerm:
    """An edge that carries embeddings in one step: the student's, in the teacher's space, and the teacher's."""

    edge: Edge
    weight: float
    student_BD: Tensor
    teacher_BD: Tensor


@dataclass(frozen=True)
class TemporalTerm:
    """An edge that carries profiles in one step: the scores of the student's steps, the teacher's profile on them, and
    which of them have sound."""

    edge: Edge
    weight: float
    scores_BQ: Tensor
    target_BQ: Tensor
    heard_BQ: Tensor


Term = EdgeTerm | EmbeddingTerm | TemporalTerm | FrameTerm


def edge_term(edge: Edge, weight: float, teacher_BC: Tensor) -> EdgeTerm:
    """The term of an edge; along a `shuffled` one, which is a control, logits are rolled by one clip."""
    return EdgeTerm(edge, weight, _rolled(edge, teacher_BC))


def embedding_term(edge: Edge, weight: float, student_BD: Tensor, teacher_BD: Tensor) -> EmbeddingTerm:
    """The same of an edge that carries embeddings."""
    return EmbeddingTerm(edge, weight, student_BD, _rolled(edge, teacher_BD))


def temporal_term(edge: Edge, weight: float, scores_BQ: Tensor, a_BQ: Tensor, heard_BQ: Tensor) -> TemporalTerm:
    """The same of an edge that carries profiles; a_BQ is the teacher's on the student's steps."""
    return TemporalTerm(edge, weight, scores_BQ, target_profile(_rolled(edge, a_BQ), heard_BQ), heard_BQ)


def frame_term(edge: Edge, weight: float, frames_BQC: Tensor, target_BQC: Tensor, counted_BQ: Tensor) -> FrameTerm:
    """The same of an edge that carries frames."""
    return FrameTerm(edge, weight, frames_BQC, _rolled(edge, target_BQC), counted_BQ)


def _rolled(edge: Edge, teacher: Tensor) -> Tensor:
    return teacher.roll(1, 0) if edge.shuffled else teacher


def student_loss(
    logits_BC: Tensor,
    y_BC: Tensor,
    terms: Sequence[Term],
    *,
    labels: str,
    smoothing: float,
    known_BC: Tensor | None = None,
    frame_labels: FrameLabels | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A student's loss, a mean over clips, and its parts by metric name.

    Per clip L = (1 - sum w) L_label + sum w L_KD over the student's edges, where w is the edge's weight on clips for
    which its gate is open, else 0 (CMKD's loss, reference/cmkd.md 1.1, for any number of teachers). Edges that carry
    embeddings, profiles or frames add w L_E, and take nothing from labels. Labels in time add (1 - sum w) L_frames over
    the edges that carry frames (reference/frames.md section 3). `known_BC` is `label_loss`'s.
    """
    label_B = label_loss(logits_BC, y_BC, labels=labels, smoothing=smoothing, known_BC=known_BC)
    label_weight_B = torch.ones_like(label_B)
    weighted_kd_B = torch.zeros_like(label_B)
    parts = {"label_loss": label_B.mean().detach()}
    for term in terms:
        if not isinstance(term, EdgeTerm):
            added_B, own_parts = _added_part(term)
            weighted_kd_B = weighted_kd_B + added_B
            parts |= own_parts
            continue
        edge, teacher_BC = term.edge, term.teacher_BC
        weight_B = term.weight * open_gate(edge, logits_BC, teacher_BC, y_BC, labels=labels, known_BC=known_BC)
        kd_B = kd_loss(logits_BC, teacher_BC, edge, labels=labels)
        label_weight_B = label_weight_B - weight_B
        weighted_kd_B = weighted_kd_B + weight_B * kd_B
        parts[f"{edge.key}/kd_loss"] = kd_B.mean().detach()
        parts[f"{edge.key}/weight"] = weight_B.mean()
    if frame_labels is not None:
        frames_B = frame_loss(
            frame_labels.frames_BQC, frame_labels.y_BQC, frame_labels.counted_BQ, known_BC=frame_labels.known_BC
        )
        frame_weight = 1 - sum(term.weight for term in terms if isinstance(term, FrameTerm))
        weighted_kd_B = weighted_kd_B + frame_weight * frames_B
        parts["frame_label_loss"] = frames_B.mean().detach()
    loss = (label_weight_B * label_B + weighted_kd_B).mean()
    return loss, parts


def _added_part(term: EmbeddingTerm | TemporalTerm | FrameTerm) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss_B that an edge adds to those of the clips, and what is recorded of it."""
    if isinstance(term, TemporalTerm):
        weight_B, loss_B, recorded = _temporal_part(term)
        return weight_B * loss_B, recorded
    if isinstance(term, FrameTerm):
        loss_B = frame_kd_loss(term)
    else:
        loss_B = embedding_loss(term.student_BD, term.teacher_BD, loss=term.edge.loss)
    key = term.edge.key
    return term.weight * loss_B, {f"{key}/kd_loss": loss_B.mean().detach(), f"{key}/weight": torch.tensor(term.weight)}


def _temporal_part(term: TemporalTerm) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weight_B and loss_B of a temporal edge, and what is recorded of them.

    Under gate = "entropy" a profile weighs 1 minus its flatness: a flat one does not say when (reference/tkd.md 9.4).
    """
    loss_B = temporal_loss(term.scores_BQ, term.target_BQ, term.heard_BQ)
    flatness_B = flatness(term.target_BQ, term.heard_BQ)
    weight_B = term.weight * (1 - flatness_B if term.edge.gate == "entropy" else torch.ones_like(flatness_B))
    key = term.edge.key
    recorded = {"kd_loss": loss_B.mean().detach(), "weight": weight_B.mean(), "flatness": flatness_B.mean()}
    return weight_B, loss_B, {f"{key}/{name}": value for name, value in recorded.items()}


def label_loss(
    logits_BC: Tensor, y_BC: Tensor, *, labels: str, smoothing: float = 0.0, known_BC: Tensor | None = None
) -> Tensor:
    """Loss_B against labels, which may be mixed: cross entropy (single), or BCE averaged over tags (multi).

    Targets are y(1 - s) + s/C (single) or y(1 - s) + s/2 (multi) with label smoothing s (reference/cmkd.md 1.1). An
    unknown label (NaN) adds 0 to the sum (single: an unlabelled clip, all of whose labels are unknown) or to the mean
    over tags (multi, as EfficientAT masks OpenMIC's: reference/efficientat.md 4). `known_BC` is the known share of each
    label, by which it counts: a mixture of a known and an unknown one is known by the weight of the first. None: all
    that is not NaN.
    """
    logits_BC = logits_BC.float()
    known_BC = _known_shares(y_BC, known_BC)
    if labels == "single":
        y_BC = y_BC.nan_to_num() * (1 - smoothing) + smoothing / y_BC.shape[1]
        return -(known_BC * y_BC * logits_BC.log_softmax(1)).sum(1)
    y_BC = y_BC.nan_to_num() * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits_BC, y_BC, weight=known_BC, reduction="none").mean(1)


def _known_shares(y_BC: Tensor, known_BC: Tensor | None) -> Tensor:
    return (~y_BC.isnan()).float() if known_BC is None else known_BC


def kd_loss(student_BC: Tensor, teacher_BC: Tensor, edge: Edge, *, labels: str) -> Tensor:
    """KL_B(act(teacher / tau) || act(student)), CMKD's distillation term (reference/cmkd.md 1.1), or BCE_B.

    KL is categorical (single), or Bernoulli, averaged over tags (multi). BCE, averaged over tags (multi only), is that
    KL plus the entropy of the teacher, which has no gradient (reference/efficientat.md 4, ced.md 7). With tau_mode =
    "both" student logits are divided by tau too and the term is multiplied by tau squared (Hinton's form).
    """
    tau = edge.temperature
    teacher_BC, student_BC = teacher_BC.float() / tau, student_BC.float()
    scale = 1.0
    if edge.tau_mode == "both":
        student_BC, scale = student_BC / tau, tau * tau
    return scale * _divergence(edge.loss, labels)(teacher_BC, student_BC)


def _divergence(loss: str, labels: str) -> Callable[[Tensor, Tensor], Tensor]:
    if loss == "bce":
        return _bce
    return _categorical_kl if labels == "single" else _bernoulli_kl


def _bce(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """Mean over tags of -p ln q - (1 - p) ln(1 - q), with p and q the sigmoid of the two."""
    return F.binary_cross_entropy_with_logits(student_BC, teacher_BC.sigmoid(), reduction="none").mean(1)


def embedding_loss(student_BD: Tensor, teacher_BD: Tensor, *, loss: str) -> Tensor:
    """Loss_B of two embeddings: 1 minus their cosine, or the mean over features of their squared difference."""
    if loss == "cosine":
        return 1 - F.cosine_similarity(student_BD, teacher_BD, dim=1)
    return (student_BD - teacher_BD).square().mean(1)


def _categorical_kl(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """KL_B(p || q) = sum p (ln p - ln q), with p and q the softmax of the two."""
    log_p = _finite(teacher_BC.log_softmax(1))
    return (log_p.exp() * (log_p - student_BC.log_softmax(1))).sum(1)


def _bernoulli_kl(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """KL_B(p || q) = mean of p (ln p - ln q) + (1 - p)(ln(1 - p) - ln(1 - q)), with p and q the sigmoid of the two."""
    present = teacher_BC.sigmoid() * (_finite(F.logsigmoid(teacher_BC)) - F.logsigmoid(student_BC))
    absent = (-teacher_BC).sigmoid() * (_finite(F.logsigmoid(-teacher_BC)) - F.logsigmoid(-student_BC))
    return (present + absent).mean(1)


def _finite(log_p_BC: Tensor) -> Tensor:
    """Log probabilities without -inf, so that p ln p is 0 where p is 0: a teacher may exclude a tag."""
    return log_p_BC.clamp(min=torch.finfo(log_p_BC.dtype).min)


def open_gate(
    edge: Edge, student_BC: Tensor, teacher_BC: Tensor, y_BC: Tensor, *, labels: str, known_BC: Tensor | None = None
) -> Tensor:
    """1 for the clips on which the edge is open, 0 elsewhere, without gradient; shape (B,).

    "better_on_clip" is open where the teacher's label loss is below the student's (Bi-KD, reference/cmkd.md section 3),
    "switokd" follows SwitOKD, "always" is open on every clip. On a clip of which nothing is known every gate is open,
    because no label says that the teacher is the worse of the two.
    """
    with torch.no_grad():
        known_BC = _known_shares(y_BC, known_BC)
        teacher_BC = teacher_BC.clamp(-CERTAIN, CERTAIN)  # a row of a store may exclude a tag: infinity times 0 is NaN
        if edge.gate == "always":
            return torch.ones(len(y_BC), device=y_BC.device)
        if edge.gate == "better_on_clip":
            teacher_B, student_B = (
                label_loss(logits_BC, y_BC, labels=labels, known_BC=known_BC) for logits_BC in (teacher_BC, student_BC)
            )
            open_B = teacher_B < student_B
        else:
            open_B = _switokd(student_BC, teacher_BC, y_BC, known_BC, labels)
        return (open_B | (known_BC == 0).all(1)).float()


def _switokd(student_BC: Tensor, teacher_BC: Tensor, y_BC: Tensor, known_BC: Tensor, labels: str) -> Tensor:
    """SwitOKD's switch per clip (reference/cmkd.md section 3): closed where the student is too far ahead.

    With L1 distances of probabilities over tags, each by its known share, G = |teacher - student|, e_s = |student - y|,
    e_t = |teacher - y| and epsilon = exp(-e_s / (e_s + e_t)): closed where G > e_t - epsilon e_s and e_s < e_t. (The
    paper's teacher is the leader, here the student.) The paper then pauses the leader; here it continues to learn from
    labels and only this edge is switched off, because budgets are fixed when the run starts.
    """
    leader, lagging = probabilities(student_BC.float(), labels), probabilities(teacher_BC.float(), labels)
    leader, lagging, y_BC = leader * known_BC, lagging * known_BC, y_BC.nan_to_num() * known_BC
    gap = (lagging - leader).abs().sum(1)
    leader_error, lagging_error = (leader - y_BC).abs().sum(1), (lagging - y_BC).abs().sum(1)
    epsilon = torch.exp(-leader_error / (leader_error + lagging_error).clamp_min(1e-12))
    expert = (gap > lagging_error - epsilon * leader_error) & (leader_error < lagging_error)
    return ~expert
