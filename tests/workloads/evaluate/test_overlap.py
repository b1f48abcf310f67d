"""Intervals over test folds whose training sets overlap, in exact numbers."""

import math

import numpy as np
import pytest

from workloads.evaluate.overlap import overlap_factor, widened


@pytest.mark.parametrize(
    ("folds", "train", "test", "factor"),
    [
        (5, 1600, 400, 1.5),  # ESC-50, all folds, without validation clips
        (5, 1440, 400, math.sqrt(43 / 18)),  # with a tenth for validation: 1.55
        (2, 1440, 400, math.sqrt(14 / 9)),  # 1.25
        (2, 1600, 400, math.sqrt(1.5)),
        (1, 900, 100, math.sqrt(10 / 9)),  # one split: other training clips would give another difference too
        (10, 900, 100, math.sqrt(19 / 9)),
    ],
)
def test_the_factor(folds, train, test, factor):
    assert overlap_factor(folds, train, test) == pytest.approx(factor, rel=1e-12)


def test_it_is_the_ratio_of_the_corrected_to_the_naive_variance_of_a_mean():
    """Nadeau and Bengio: (1 / J + n2 / n1) s^2 instead of s^2 / J, for any differences of J splits."""
    differences = np.array([0.02, 0.05, -0.01, 0.03])
    variance = differences.var(ddof=1)
    corrected, naive = (1 / 4 + 100 / 300) * variance, variance / 4
    assert overlap_factor(4, 300, 100) ** 2 == pytest.approx(corrected / naive, rel=1e-12)


def test_it_covers_the_variance_that_differences_with_a_common_part_have():
    """J differences of variance 1 and covariance rho = n2 / (n1 + n2): the mean's true variance is rho + (1 - rho) / J,
    and the naive one expects (1 - rho) / J."""
    folds, train, test = 5, 800, 200
    rho = test / (train + test)
    assert overlap_factor(folds, train, test) ** 2 * (1 - rho) / folds == pytest.approx(rho + (1 - rho) / folds)


def test_both_arms_are_widened_from_the_difference():
    assert widened(0.5, (0.3, 0.6), 1.5) == pytest.approx((0.2, 0.65))
    assert widened(-0.1, (-0.1, 0.1), 2.0) == pytest.approx((-0.1, 0.3))


def test_no_end_moves_inward_where_the_interval_does_not_hold_the_difference():
    assert widened(0.010, (0.012, 0.05), 1.5) == pytest.approx((0.012, 0.07))
    assert widened(0.010, (-0.03, 0.008), 1.5) == pytest.approx((-0.05, 0.008))


def test_no_training_clips_are_refused():
    with pytest.raises(ValueError, match="2 folds with 0 training clips: both must be above 0"):
        overlap_factor(2, 0, 10)
