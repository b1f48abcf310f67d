"""The level above which a score says anything, compared with all orders of a few clips and with sums by hand."""

import itertools
import math

import pytest
from sklearn.metrics import average_precision_score

from workloads.evaluate.chance import chance_levels, chance_precision


@pytest.mark.parametrize(("have", "known"), [(1, 2), (1, 6), (2, 6), (5, 6)])
def test_the_precision_of_a_random_order_is_the_mean_over_all_orders(have: int, known: int) -> None:
    orders = list(itertools.combinations(range(known), have))
    ranks = [-rank for rank in range(known)]
    precisions = [average_precision_score([rank in order for rank in range(known)], ranks) for order in orders]
    assert chance_precision(have, known) == pytest.approx(sum(precisions) / len(precisions), abs=1e-12)


def test_single_labels() -> None:
    levels = chance_levels([3, 1, 0], [4, 4, 4], "single")
    assert levels["accuracy"] == 0.75
    assert levels["log_loss"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert levels["mAP"] == pytest.approx((chance_precision(3, 4) + chance_precision(1, 4)) / 2)


def test_unknown_labels_and_tags_of_every_clip_are_left_out() -> None:
    levels = chance_levels([1, 4, 0], [2, 4, 0], "multi")
    assert levels == {
        "mAP": chance_precision(1, 2),
        "auc": 0.5,
        "d_prime": 0.0,
        "log_loss": pytest.approx(2 * math.log(2) / 6),
    }
    assert chance_levels([4, 0], [4, 4], "single") == {}
