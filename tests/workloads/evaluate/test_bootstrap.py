"""What teaching did, with intervals: exact values on small sets, and scikit-learn's on resampled ones."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from workloads.evaluate.bootstrap import Pair, average_precisions, what_teaching_did
from workloads.evaluate.metrics import score


def random_set(*, clips=60, tags=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y_NC = (torch.rand(clips, tags, generator=generator) < 0.3).float()
    return y_NC, [torch.randn(clips, tags, generator=generator) + y_NC * strength for strength in (0.5, 1.5)]


def test_average_precision_of_resamples_is_that_of_the_repeated_clips():
    rng = np.random.default_rng(1)
    scores_N, y_N = rng.normal(size=40).round(1), (rng.random(40) < 0.4).astype(float)  # rounded: some are equal
    y_N[:3] = np.nan
    counts_BN = rng.multinomial(40, np.full(40, 1 / 40), size=20)
    for counts_N, value in zip(counts_BN, average_precisions(scores_N, y_N, counts_BN.astype(float)), strict=True):
        clips = np.repeat(np.arange(3, 40), counts_N[3:])
        assert value == pytest.approx(average_precision_score(y_N[clips], scores_N[clips]), abs=1e-12)


def test_average_precision_needs_clips_with_and_without_the_tag():
    counts_BN = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    values_B = average_precisions(np.array([0.1, 0.2]), np.array([1.0, 0.0]), counts_BN)
    assert values_B[0] == 0.5
    assert np.isnan(values_B[1:]).all()
    assert np.isnan(average_precisions(np.array([0.1]), np.array([np.nan]), np.array([[1.0]]))).all()


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_scores_are_those_of_the_metrics_and_more_is_better(labels):
    y_NC, (weak_NC, strong_NC) = random_set()
    if labels == "single":
        y_NC = torch.nn.functional.one_hot(y_NC.argmax(1), 4).float()
    compared = what_teaching_did([Pair(strong_NC, weak_NC)], y_NC, labels)
    taught, untaught = score(strong_NC, y_NC, labels), score(weak_NC, y_NC, labels)
    metric = "accuracy" if labels == "single" else "mAP"
    assert (compared["metric"], compared["seeds"], compared["clips"]) == (metric, 1, 60)
    for row, name, sign in ((compared, metric, 1), (compared["log_loss"], "log_loss", -1)):
        assert (row["taught"], row["untaught"]) == (taught[name], untaught[name])
        assert row["difference"] == pytest.approx(sign * (taught[name] - untaught[name]), abs=1e-12)
        low, high = row["interval"]
        assert low < row["difference"] < high
    if labels == "multi":
        assert compared["interval"][0] > 0


def test_equal_models_differ_by_nothing():
    y_NC, (z_NC, _) = random_set()
    compared = what_teaching_did([Pair(z_NC, z_NC)], y_NC, "multi")
    assert compared["interval"] == compared["log_loss"]["interval"] == [0.0, 0.0]


def test_the_interval_of_an_accuracy_is_the_normal_one():
    """d_N is 1 on 60 clips, -1 on 20, 0 on 320: mean 0.1, standard error sqrt((80 - 40^2 / 400) / 400) / 20."""
    tag_N = torch.zeros(400, dtype=torch.long)
    y_NC = torch.nn.functional.one_hot(tag_N, 2).float()
    right_NC, wrong_NC = y_NC, 1 - y_NC
    taught_NC = torch.cat([right_NC[:60], wrong_NC[60:80], right_NC[80:]])
    untaught_NC = torch.cat([wrong_NC[:60], right_NC[60:80], right_NC[80:]])
    compared = what_teaching_did([Pair(taught_NC, untaught_NC)], y_NC, "single")
    half = 1.96 * ((80 - 1600 / 400) / 400) ** 0.5 / 20
    assert compared["difference"] == pytest.approx(0.1)
    np.testing.assert_allclose(compared["interval"], [0.1 - half, 0.1 + half], atol=0.003)


def test_unknown_labels_count_neither_for_nor_against():
    y_NC, (weak_NC, strong_NC) = random_set()
    y_NC[:30, 0] = torch.nan
    compared = what_teaching_did([Pair(strong_NC, weak_NC)], y_NC, "multi")
    assert compared["log_loss"]["taught"] == score(strong_NC, y_NC, "multi")["log_loss"]


def test_seeds_that_disagree_widen_the_interval():
    """All clips alike, two seeds of which one gains 1 and one nothing: one of them is drawn, so 0 to 1."""
    y_NC = torch.nn.functional.one_hot(torch.zeros(10, dtype=torch.long), 2).float()
    pairs = [Pair(y_NC, 1 - y_NC), Pair(y_NC, y_NC)]
    compared = what_teaching_did(pairs, y_NC, "single")
    assert (compared["difference"], compared["interval"], compared["seeds"]) == (0.5, [0.0, 1.0], 2)
