"""What scores would be without a model: the level above which a score says anything. Does not import torch.

For each tag, `have` is the number of clips that have it and `known` that of clips of which it is known whether they do.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np


def chance_levels(have: Sequence[int], known: Sequence[int], labels: str) -> dict[str, float]:
    """The scores (`metrics.score`) of answers that do not depend on the clip, by name; without those that have none.

    accuracy: always the commonest tag. mAP: clips in random order. auc, d_prime: the same. log_loss: each tag's share
    of the clips as its probability.
    """
    mixed = [(own, total) for own, total in zip(have, known, strict=True) if 0 < own < total]
    if not mixed:
        return {}
    precision = sum(chance_precision(own, total) for own, total in mixed) / len(mixed)
    if labels == "single":
        clips = sum(have)
        log_loss = -sum(own / clips * math.log(own / clips) for own in have if own)
        return {"accuracy": max(have) / clips, "log_loss": log_loss, "mAP": precision}
    log_loss = sum(total * _bernoulli_entropy(own / total) for own, total in mixed) / sum(known)
    return {"mAP": precision, "auc": 0.5, "d_prime": 0.0, "log_loss": log_loss}


def chance_precision(have: int, known: int) -> float:
    """The expected average precision of `known` clips in random order, of which `have` have the tag; 0 < have < known.

    A rank k holds one of them with probability have / known; then (have - 1) / (known - 1) of the k - 1 clips above it
    are expected to have the tag too.
    """
    above = (have - 1) / (known - 1)
    return above + _harmonic(known) / known * (1 - above)


@functools.cache
def _harmonic(n: int) -> float:
    return float(np.reciprocal(np.arange(1, n + 1, dtype=np.float64)).sum())


def _bernoulli_entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)
