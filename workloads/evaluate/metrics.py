"""How good taggers are, and how alike: all from logits. Knows no model, no data set and no tracking.

`labels` is "single" (softmax, one tag a clip) or "multi" (a sigmoid for each tag). Probabilities are float64.
Axes: N clips, C tags (rows of CC are true tags). y_NC is 0/1, or for "single" anything whose argmax is the tag; for
"multi" NaN is a label that is unknown and does not count.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from workloads.models.probabilities import probabilities

ECE_BINS = 15
AUC_EDGE = 1e-6  # d' of a perfect AUC is infinite, which no log can hold: 6.72 is the most we report


def primary(labels: str) -> str:
    """The score by which models are compared."""
    _check(labels)
    return "accuracy" if labels == "single" else "mAP"


def score(logits_NC: Tensor, y_NC: Tensor, labels: str) -> dict[str, float]:
    """All scores of a set of clips.

    single: accuracy, log_loss (nats), mAP, ece. multi: mAP, auc, d_prime, log_loss (mean Bernoulli cross entropy,
    nats), ece. mAP and auc are macro means over the tags that have clips with them (auc: and without); `tags_skipped`
    counts the others. ece: 15 equal bins, of the highest probability (single) or of all (multi). d' follows from the
    mean AUC, as AudioSet's scores do. Raises ValueError where no tag can be scored or a logit is not finite.
    """
    _check(labels)
    logits_NC, y_NC = _finite(logits_NC), y_NC.detach().cpu().double()
    return _score_single(logits_NC, y_NC.argmax(1)) if labels == "single" else _score_multi(logits_NC, y_NC)


def per_tag(logits_NC: Tensor, y_NC: Tensor, tags: tuple[str, ...], labels: str) -> dict[str, float]:
    """Recall (single) or average precision (multi) of every tag that has clips; the others are absent."""
    _check(labels)
    if labels == "multi":
        return {tags[tag]: value for tag, value in _precisions(_finite(logits_NC), y_NC.cpu()).items()}
    matrix_CC = confusion(logits_NC, y_NC)
    totals_C = matrix_CC.sum(1)
    return {
        tag: (matrix_CC[row, row] / totals_C[row]).item() for row, tag in enumerate(tags) if totals_C[row].item() > 0
    }


def confusion(logits_NC: Tensor, y_NC: Tensor) -> Tensor:
    """How many clips of the row's tag were given the column's: int64 CC, for single labels."""
    num_tags = logits_NC.shape[1]
    pairs_N = y_NC.argmax(1).cpu() * num_tags + logits_NC.argmax(1).cpu()
    return torch.bincount(pairs_N, minlength=num_tags**2).reshape(num_tags, num_tags)


def cooccurrence(logits_NC: Tensor, y_NC: Tensor) -> Tensor:
    """Mean probability of the column's tag on clips that have the row's: float64 CC; NaN in rows without clips."""
    y_NC = y_NC.detach().cpu().double()
    return y_NC.nan_to_num().T @ _finite(logits_NC).sigmoid() / y_NC.nansum(0)[:, None]


def agreement(za_NC: Tensor, zb_NC: Tensor, labels: str) -> float:
    """The share of clips on which two models say the same: the same first tag, or the same set of tags at 0.5."""
    _check(labels)
    if labels == "single":
        return (za_NC.argmax(1) == zb_NC.argmax(1)).double().mean().item()
    return ((za_NC > 0) == (zb_NC > 0)).all(1).double().mean().item()


def teacher_entropy(z_NC: Tensor, temperature: float, labels: str) -> float:
    """Mean entropy in nats of what a teacher says at a temperature: of a clip (single) or of a clip's tag (multi)."""
    _check(labels)
    z_NC = z_NC.detach().double() / temperature
    p_NC = probabilities(z_NC, labels)
    if labels == "single":
        return -torch.xlogy(p_NC, p_NC).sum(1).mean().item()
    return F.binary_cross_entropy_with_logits(z_NC, p_NC).item()


def _score_single(logits_NC: Tensor, tag_N: Tensor) -> dict[str, float]:
    y_NC = F.one_hot(tag_N, logits_NC.shape[1])
    p_NC = logits_NC.softmax(1)
    right_N = logits_NC.argmax(1) == tag_N
    precisions = _precisions(p_NC, y_NC)
    return {
        "accuracy": right_N.double().mean().item(),
        "log_loss": F.cross_entropy(logits_NC, tag_N).item(),
        "mAP": _mean(precisions),
        "ece": _calibration_error(p_NC.amax(1), right_N),
        "tags_skipped": float(logits_NC.shape[1] - len(precisions)),
    }


def _score_multi(logits_NC: Tensor, y_NC: Tensor) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    precisions, known_NC = _precisions(logits_NC, y_NC), ~y_NC.isnan()
    mixed = {tag for tag in precisions if (y_NC[:, tag] == 0).any()}
    if not mixed:
        raise ValueError(f"y of {len(y_NC)} clips: no tag has clips both with and without it; take a larger slice")
    auc = _mean({tag: roc_auc_score(*_known(y_NC, logits_NC, tag)) for tag in mixed})
    return {
        "mAP": _mean(precisions),
        "auc": auc,
        "d_prime": math.sqrt(2) * NormalDist().inv_cdf(min(max(auc, AUC_EDGE), 1 - AUC_EDGE)),
        "log_loss": F.binary_cross_entropy_with_logits(logits_NC[known_NC], y_NC[known_NC]).item(),
        "ece": _calibration_error(logits_NC[known_NC].sigmoid(), y_NC[known_NC]),
        "tags_skipped": float(logits_NC.shape[1] - len(precisions)),
    }


def _precisions(scores_NC: Tensor, y_NC: Tensor) -> dict[int, float]:
    """Average precision by tag, of the tags that have clips."""
    from sklearn.metrics import average_precision_score

    present = y_NC.nansum(0).nonzero().flatten().tolist()
    return {tag: float(average_precision_score(*_known(y_NC, scores_NC, tag))) for tag in present}


def _known(y_NC: Tensor, scores_NC: Tensor, tag: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and scores of a tag, of the clips whose label is known."""
    known_N = ~y_NC[:, tag].isnan()
    return y_NC[known_N, tag].numpy(), scores_NC[known_N, tag].numpy()


def _calibration_error(p_N: Tensor, right_N: Tensor) -> float:
    """Expected calibration error over bins ((i - 1)/15, i/15]: |share right - mean probability|, weighed by size."""
    bin_N = (p_N * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gap_N = right_N.double() - p_N
    gaps = torch.zeros(ECE_BINS, dtype=torch.float64).index_add_(0, bin_N, gap_N)
    return (gaps.abs().sum() / len(p_N)).item()


def _mean(values: dict[int, Any]) -> float:
    return float(sum(values.values()) / len(values))


def _finite(logits_NC: Tensor) -> Tensor:
    logits_NC = logits_NC.detach().cpu().double()
    broken = int((~logits_NC.isfinite()).sum())
    if broken:
        raise ValueError(f"logits: {broken} of {logits_NC.numel()} are not finite; the model diverged, lower its lr")
    return logits_NC


def _check(labels: str) -> None:
    if labels not in ("single", "multi"):
        raise ValueError(f"labels = {labels!r}: must be single or multi")
