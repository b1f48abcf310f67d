"""Intervals of a difference over test folds whose training sets overlap. Does not depend on scores or torch.

A bootstrap of test clips and seeds keeps the trained models as they are, so it does not know how much the difference
would vary with other training clips; and models of several test folds have most of these in common. Nadeau and Bengio
(Inference for the generalization error, Machine Learning 52, 2003) treat the sample variance s^2 of the differences of
J splits of n1 training and n2 test clips each: where these correlate by rho = n2 / (n1 + n2), itself a guess, the
variance of their mean is (1 / J + n2 / n1) s^2. With independent splits it would be s^2 / J; the ratio of the two is

    1 + J n2 / n1.

Here an interval is widened by the square root of that. This is a heuristic: what is multiplied is a bootstrap variance
over clips and seeds, not the s^2 / J of that theorem, which no two or five folds would estimate well. It assumes that
the two are alike. How much the difference does vary with training clips is not measured, and with J = 1 nothing of the
data says it.
"""

import math


def overlap_factor(num_folds: int, train_clips: float, test_clips: float) -> float:
    """By how much an interval over so many test folds is widened; clips are means over the folds.

    With five folds, four of which train whole, 1.5; with a tenth of these for validation 1.55, and on two folds 1.25.
    """
    if num_folds < 1 or train_clips <= 0:
        raise ValueError(f"{num_folds} folds with {train_clips:g} training clips: both must be above 0")
    return math.sqrt(1 + num_folds * test_clips / train_clips)


def widened(difference: float, interval: tuple[float, float], factor: float) -> tuple[float, float]:
    """The interval with both of its arms, seen from the difference, `factor` times as long.

    No end moves inward: a percentile interval need not hold the difference itself (2000 resamples of a skewed score),
    and the end that the difference lies beyond stays where it is.
    """
    low, high = interval
    return min(low, difference - factor * (difference - low)), max(high, difference + factor * (high - difference))
