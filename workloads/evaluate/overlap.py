"""Intervals of a difference over test folds whose training sets overlap. Does not depend on scores or torch.

A bootstrap of test clips and seeds keeps the trained models as they are, so it does not know how much the difference
would vary with other training clips; and models of several test folds have most of these in common, so their folds
agree more than independent ones would. Nadeau and Bengio (Inference for the generalization error, Machine Learning 52,
2003): where J splits of n1 training and n2 test clips each have differences of covariance rho = n2 / (n1 + n2) times
their variance, the variance of their mean is (1 / J + n2 / n1) times what is seen of one split, of which 1 / J alone is
counted where splits are taken to be independent. A variance that was computed so is multiplied by the ratio of the two,

    1 + J n2 / n1,

and so is that of one split, J = 1, whose training clips vary too. An interval is widened by the square root.
"""

import math


def overlap_factor(num_folds: int, train_clips: float, test_clips: float) -> float:
    """By how much an interval over so many test folds is widened; clips are means over the folds.

    With five folds, four of which train, 1.5; with two of five folds 1.22.
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
