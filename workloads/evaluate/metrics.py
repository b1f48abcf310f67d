"""Scores of taggers, and how far two of them agree, computed from logits.

Does not depend on models, data sets or tracking. `labels` is "single" (one tag per clip, softmax) or "multi" (a sigmoid
per tag). Probabilities are float64. Axes: N clips of a set, C tags; rows of CC are true tags. y_NC is 0 or 1; for
"single" any values of which the largest marks the tag; for "multi" NaN is an unknown label, which is left out.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from workloads.evaluate.chance import chance_precision
from workloads.models.probabilities import probabilities

ECE_BINS = 15
CERTAIN = 700.0  # a logit of which sigmoid and logarithm are still finite in float64: a store may exclude a tag
AUC_EDGE = 1e-6  # AUC is clipped to [edge, 1 - edge], since d' of a perfect one is infinite: d' is 6.72 at most


def primary(labels: str) -> str:
    """The name of the score by which models are compared; more is better."""
    _check_labels(labels)
    return "accuracy" if labels == "single" else "mAP"


def score(logits_NC: Tensor, y_NC: Tensor, labels: str) -> dict[str, float]:
    """All scores of a set of clips.

    accuracy (single): share of clips whose most likely tag is the true one.
    mAP: mean over tags of average precision.
    auc (multi): mean over tags of the area under the ROC curve.
    Both over the tags with clips both with and without them, as any order of the clips is right for the others;
    `tags_skipped` counts these.
    d_prime (multi): sqrt(2) times the standard normal quantile of auc, as AudioSet's scores are computed.
    log_loss: mean cross entropy in nats, of a clip (single) or of a clip's tag (Bernoulli, multi).
    ece: expected calibration error over 15 equal bins, of the highest probability (single) or of all (multi).

    Raises ValueError where no tag can be scored or a logit is not finite.
    """
    _check_labels(labels)
    logits_NC, y_NC = _finite(logits_NC), y_NC.detach().cpu().double()
    return _score_single(logits_NC, y_NC.argmax(1)) if labels == "single" else _score_multi(logits_NC, y_NC)


def per_tag(logits_NC: Tensor, y_NC: Tensor, tags: tuple[str, ...], labels: str) -> dict[str, float]:
    """Recall (single) or average precision (multi) of each tag that can be scored; the others are left out.

    Recall needs clips with the tag, average precision also clips without it.
    """
    _check_labels(labels)
    if labels == "multi":
        return {tags[tag]: value for tag, value in _average_precisions(_finite(logits_NC), y_NC.cpu()).items()}
    matrix_CC = confusion(logits_NC, y_NC)
    totals_C = matrix_CC.sum(1)
    return {
        tag: (matrix_CC[row, row] / totals_C[row]).item() for row, tag in enumerate(tags) if totals_C[row].item() > 0
    }


@dataclass(frozen=True)
class TagScores:
    """The scores of one tag; None where the clips do not give them, of average precision with the reason."""

    support: int  # clips that have the tag
    average_precision: float | None
    chance: float | None  # the average precision that clips in random order would have
    recall: float | None  # single: the share of these clips whose most likely tag it is
    reason: str = ""


def tag_scores(logits_NC: Tensor, y_NC: Tensor, tags: tuple[str, ...], labels: str) -> dict[str, TagScores]:
    """The scores of every tag, in the order of the tags, also of those that cannot be scored."""
    _check_labels(labels)
    logits_NC, y_NC = _finite(logits_NC), y_NC.detach().cpu().double()
    p_NC = probabilities(logits_NC, labels)
    precisions = _average_precisions(logits_NC if labels == "multi" else p_NC, y_NC)
    recalls = per_tag(logits_NC, y_NC, tags, labels) if labels == "single" else {}
    support_C, known_C = (y_NC == 1).sum(0).tolist(), (~y_NC.isnan()).sum(0).tolist()
    return {
        tag: TagScores(
            support=support_C[column],
            average_precision=precisions.get(column),
            chance=chance_precision(support_C[column], known_C[column]) if column in precisions else None,
            recall=recalls.get(tag),
            reason="" if column in precisions else _why_unscored(support_C[column], known_C[column]),
        )
        for column, tag in enumerate(tags)
    }


def _why_unscored(support: int, known: int) -> str:
    if not known:
        return "known of no clip"
    return "no clip has it" if not support else "every clip has it"


def clip_losses(logits_NC: Tensor, y_NC: Tensor, labels: str) -> Tensor:
    """loss_N: each clip's cross entropy in nats, with "multi" the mean over its known tags; NaN where none is known."""
    _check_labels(labels)
    logits_NC, y_NC = _finite(logits_NC), y_NC.detach().cpu().double()
    if labels == "single":
        return F.cross_entropy(logits_NC, y_NC.argmax(1), reduction="none")
    loss_NC = F.binary_cross_entropy_with_logits(logits_NC, y_NC.nan_to_num(), reduction="none")
    return loss_NC.where(~y_NC.isnan(), torch.nan).nanmean(1)


def confusion(logits_NC: Tensor, y_NC: Tensor) -> Tensor:
    """The number of clips with the row's true tag and the column's most likely one; int64 CC; single labels only."""
    num_tags = logits_NC.shape[1]
    pairs_N = y_NC.argmax(1).cpu() * num_tags + logits_NC.argmax(1).cpu()
    return torch.bincount(pairs_N, minlength=num_tags**2).reshape(num_tags, num_tags)


def cooccurrence(logits_NC: Tensor, y_NC: Tensor) -> Tensor:
    """Mean probability of the column's tag on the clips that have the row's; float64 CC, NaN in rows without clips."""
    y_NC = y_NC.detach().cpu().double()
    return y_NC.nan_to_num().T @ _finite(logits_NC).sigmoid() / y_NC.nansum(0)[:, None]


def agreement(za_NC: Tensor, zb_NC: Tensor, labels: str) -> float:
    """How far two models predict the same.

    single: the share of clips with the same most likely tag. multi: the share of decisions (is this tag's probability
    above 0.5 in this clip?) that are alike.
    """
    _check_labels(labels)
    if labels == "single":
        return (za_NC.argmax(1) == zb_NC.argmax(1)).double().mean().item()
    return ((za_NC > 0) == (zb_NC > 0)).double().mean().item()


def teacher_entropy(z_NC: Tensor, temperature: float, labels: str) -> float:
    """Mean entropy in nats of act(z / temperature), of a clip (single) or of a clip's tag (multi)."""
    _check_labels(labels)
    z_NC = (z_NC.detach().double() / temperature).clamp(-CERTAIN, CERTAIN)
    p_NC = probabilities(z_NC, labels)
    if labels == "single":
        return -torch.xlogy(p_NC, p_NC).sum(1).mean().item()
    return F.binary_cross_entropy_with_logits(z_NC, p_NC).item()


def _score_single(logits_NC: Tensor, tag_N: Tensor) -> dict[str, float]:
    y_NC = F.one_hot(tag_N, logits_NC.shape[1])
    p_NC = logits_NC.softmax(1)
    correct_N = logits_NC.argmax(1) == tag_N
    precisions = _average_precisions(p_NC, y_NC)
    return {
        "accuracy": correct_N.double().mean().item(),
        "log_loss": F.cross_entropy(logits_NC, tag_N).item(),
        **({"mAP": _mean(precisions)} if precisions else {}),  # none where all clips have the same tag
        "ece": _calibration_error(p_NC.amax(1), correct_N),
        "tags_skipped": float(logits_NC.shape[1] - len(precisions)),
    }


def _score_multi(logits_NC: Tensor, y_NC: Tensor) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    precisions, known_NC = _average_precisions(logits_NC, y_NC), ~y_NC.isnan()
    if not precisions:
        raise ValueError(f"y of {len(y_NC)} clips: no tag has clips both with and without it; take a larger slice")
    auc = _mean({tag: roc_auc_score(*_known(y_NC, logits_NC, tag)) for tag in precisions})
    return {
        "mAP": _mean(precisions),
        "auc": auc,
        "d_prime": math.sqrt(2) * NormalDist().inv_cdf(min(max(auc, AUC_EDGE), 1 - AUC_EDGE)),
        "log_loss": F.binary_cross_entropy_with_logits(logits_NC[known_NC], y_NC[known_NC]).item(),
        "ece": _calibration_error(logits_NC[known_NC].sigmoid(), y_NC[known_NC]),
        "tags_skipped": float(logits_NC.shape[1] - len(precisions)),
    }


def _average_precisions(scores_NC: Tensor, y_NC: Tensor) -> dict[int, float]:
    """The average precision of each tag with clips both with and without it, by the tag's index."""
    from sklearn.metrics import average_precision_score

    mixed = ((y_NC == 1).any(0) & (y_NC == 0).any(0)).nonzero().flatten().tolist()
    return {tag: float(average_precision_score(*_known(y_NC, scores_NC, tag))) for tag in mixed}


def _known(y_NC: Tensor, scores_NC: Tensor, tag: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A tag's labels and scores on the clips whose label is known."""
    known_N = ~y_NC[:, tag].isnan()
    return y_NC[known_N, tag].numpy(), scores_NC[known_N, tag].numpy()


def _calibration_error(p_N: Tensor, true_N: Tensor) -> float:
    """Expected calibration error over bins ((i - 1)/15, i/15]: |share true - mean probability|, weighted by size.

    N is any number of predictions; `true_N` is 1 where the prediction came true.
    """
    bin_N = (p_N * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gap_N = true_N.double() - p_N
    gaps = torch.zeros(ECE_BINS, dtype=torch.float64).index_add_(0, bin_N, gap_N)
    return (gaps.abs().sum() / len(p_N)).item()


def _mean(values: dict[int, Any]) -> float:
    return float(sum(values.values()) / len(values))


def _finite(logits_NC: Tensor) -> Tensor:
    logits_NC = logits_NC.detach().cpu().double()
    num_bad = int((~logits_NC.isfinite()).sum())
    if num_bad:
        raise ValueError(f"logits: {num_bad} of {logits_NC.numel()} are not finite; the model diverged, lower its lr")
    return logits_NC


def _check_labels(labels: str) -> None:
    if labels not in ("single", "multi"):
        raise ValueError(f"labels = {labels!r}: must be single or multi")
