"""What teaching did: a taught model against its untaught control on the same clips, with paired bootstrap intervals.

Axes: N test clips, C tags, B resamples; S runs that differ by their seed. Clips are drawn with replacement, the same
ones for both models and for all seeds; of several seeds S - 1 are drawn, which makes the variance of a mean over
seeds unbiased (Rao and Wu, JASA 83, 1988; S draws would give (S - 1) / S of it).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workloads.evaluate.metrics import clip_losses, primary, score

RESAMPLES = 2000
CONFIDENCE = 0.95
AT_ONCE = 2**22  # numbers of one array: so many resamples are worked on together
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """One seed's raw logits_NC of a student and of its control, on the same clips in the same order."""

    taught_NC: Tensor
    untaught_NC: Tensor


def what_teaching_did(pairs: list[Pair], y_NC: Tensor, labels: str) -> dict[str, Any]:
    """Mean scores over seeds, taught and untaught, with the difference and its 95 % interval, positive: better.

    Of the primary score (`metrics.primary`) and, under `log_loss`, of the log loss in nats, whose difference is
    untaught minus taught. Raises ValueError where no tag can be scored.
    """
    metric = primary(labels)
    taught = [score(pair.taught_NC, y_NC, labels) for pair in pairs]
    untaught = [score(pair.untaught_NC, y_NC, labels) for pair in pairs]
    counts = Resamples(len(y_NC), len(pairs))
    compared = {}
    for name, sign, resample in ((metric, 1, _SCORES[metric]), ("log_loss", -1, _log_losses)):
        differences_SB = np.stack(
            [
                sign
                * (resample(pair.taught_NC, y_NC, labels, counts) - resample(pair.untaught_NC, y_NC, labels, counts))
                for pair in pairs
            ]
        )
        means = [float(np.mean([row[name] for row in side])) for side in (taught, untaught)]
        low, high = counts.interval(differences_SB)
        compared[name] = {
            "taught": means[0],
            "untaught": means[1],
            "difference": sign * (means[0] - means[1]),
            "interval": [low, high],
        }
    return {
        "metric": metric,
        "seeds": len(pairs),
        "clips": len(y_NC),
        **compared[metric],
        "log_loss": compared["log_loss"],
    }


def score_intervals(logits_NC: Tensor, y_NC: Tensor, labels: str) -> dict[str, list[float]]:
    """The 95 % intervals of a model's primary score and of its log loss in nats, over the clips.

    Without those of a score that no resample has, as the mAP of clips that all have the same tags.
    """
    metric, counts = primary(labels), Resamples(len(y_NC), 1)
    resamples = {metric: _SCORES[metric], "log_loss": _log_losses}
    values = {name: resample(logits_NC, y_NC, labels, counts) for name, resample in resamples.items()}
    return {name: list(counts.interval(own_B[None])) for name, own_B in values.items() if not np.isnan(own_B).all()}


def compare_means(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """A value of each clip, value_N taught and untaught by seed: means, their difference and its 95 % interval."""
    sides = np.array([[value_N.double().numpy() for value_N in pair] for pair in pairs])
    taught, untaught = sides.mean((0, 2))
    counts = Resamples(sides.shape[2], len(pairs))
    gained_SN = sides[:, 0] - sides[:, 1]
    differences_SB = np.concatenate([gained_SN @ w_BN.T / len(w_BN.T) for w_BN in counts.blocks()], axis=1)
    low, high = counts.interval(differences_SB)
    return {
        "taught": float(taught),
        "untaught": float(untaught),
        "difference": float(taught - untaught),
        "interval": [low, high],
    }


class Resamples:
    """How often each clip and each seed is drawn in each resample; the same draws whenever it is made."""

    def __init__(self, num_clips: int, num_seeds: int) -> None:
        generator = np.random.default_rng(0)
        rows, even_N = max(AT_ONCE // num_clips, 1), np.full(num_clips, 1 / num_clips)
        self._blocks = [
            generator.multinomial(num_clips, even_N, size=min(rows, RESAMPLES - start)).astype(np.uint16)
            for start in range(0, RESAMPLES, rows)
        ]
        drawn = max(num_seeds - 1, 1)
        self._seeds_BS = generator.multinomial(drawn, np.full(num_seeds, 1 / num_seeds), size=RESAMPLES) / drawn

    def blocks(self) -> Iterator[Array]:
        """counts_BN of the clips, in blocks of resamples that fit in memory."""
        return (block_BN.astype(float) for block_BN in self._blocks)

    def interval(self, differences_SB: Array) -> tuple[float, float]:
        """The 95 % interval of the mean over seeds; resamples without any tag to score are left out, not all are."""
        means_B = (self._seeds_BS.T * differences_SB).sum(0)
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.nanpercentile(means_B, [tail, 100 - tail])
        return float(low), float(high)


def _log_losses(logits_NC: Tensor, y_NC: Tensor, labels: str, counts: Resamples) -> Array:
    """The log loss of every resample, in nats."""
    known_N = (~y_NC.isnan()).sum(1).double().cpu()  # a clip counts by its known labels
    sums_N = (clip_losses(logits_NC, y_NC, labels).nan_to_num() * known_N).numpy()
    with np.errstate(invalid="ignore"):
        return np.concatenate([(w_BN @ sums_N) / (w_BN @ known_N.numpy()) for w_BN in counts.blocks()])


def _accuracies(logits_NC: Tensor, y_NC: Tensor, labels: str, counts: Resamples) -> Array:
    """The accuracy of every resample."""
    correct_N = (logits_NC.argmax(1) == y_NC.argmax(1)).double().cpu().numpy()
    return np.concatenate([w_BN @ correct_N / len(correct_N) for w_BN in counts.blocks()])


def _mean_precisions(logits_NC: Tensor, y_NC: Tensor, labels: str, counts: Resamples) -> Array:
    """The mAP of every resample, over the tags with clips both with and without them; NaN where there are none."""
    z_CN, y_CN = (values_NC.detach().cpu().double().numpy().T for values_NC in (logits_NC, y_NC))
    means = []
    for w_BN in counts.blocks():
        by_tag = [average_precisions(z_N, y_N, w_BN) for z_N, y_N in zip(z_CN, y_CN, strict=True)]
        means.append(mean_over_tags(np.stack(by_tag)))
    return np.concatenate(means)


def mean_over_tags(precisions_CB: Array) -> Array:
    """The mean of each resample over its tags that can be scored, which are not NaN; NaN where there are none."""
    scored_B = (~np.isnan(precisions_CB)).sum(0)
    return np.where(scored_B, np.nansum(precisions_CB, 0) / np.maximum(scored_B, 1), np.nan)


def average_precisions(scores_N: Array, y_N: Array, counts_BN: Array) -> Array:
    """A tag's average precision in each resample: sum of (R_k - R_k-1) P_k over distinct scores, as scikit-learn's.

    `y_N` is 0, 1, or NaN where the label is unknown. NaN for a resample that lacks clips with or without the tag.
    """
    known_N = ~np.isnan(y_N)
    order = np.argsort(-scores_N[known_N], kind="stable")
    scores_N, y_N = scores_N[known_N][order], y_N[known_N][order]
    counts_BN = counts_BN[:, known_N][:, order]
    if not len(scores_N):
        return np.full(len(counts_BN), np.nan)
    ends = np.append(np.flatnonzero(np.diff(scores_N)), len(scores_N) - 1)  # clips of equal score count together
    found_BN, drawn_BN = np.cumsum(counts_BN * y_N, 1)[:, ends], np.cumsum(counts_BN, 1)[:, ends]
    positives_B, all_B = found_BN[:, -1], drawn_BN[:, -1]
    gained_BN = np.diff(found_BN, axis=1, prepend=0)
    sums_B = (gained_BN * found_BN / np.maximum(drawn_BN, 1)).sum(1)
    mixed_B = (positives_B > 0) & (positives_B < all_B)
    return np.where(mixed_B, sums_B / np.maximum(positives_B, 1), np.nan)


_SCORES = {"accuracy": _accuracies, "mAP": _mean_precisions}
