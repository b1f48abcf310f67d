"""Scores compared with numbers computed by hand."""

import math

import pytest
import torch

from workloads.evaluate import metrics

# three clips, three tags; the second clip is predicted as tag 0 but has tag 1; no clip has tag 2
P_NC = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.2, 0.6, 0.2]], dtype=torch.float64)
ONE_NC = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]])


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_single_label_scores() -> None:
    scores = metrics.score(P_NC.log(), ONE_NC, "single")
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["log_loss"] == pytest.approx(-(math.log(0.7) + math.log(0.4) + math.log(0.6)) / 3)
    assert scores["mAP"] == 1.0  # within its column each clip with the tag comes first
    assert scores["tags_skipped"] == 1.0
    # three bins of one clip each: .7 right, .5 wrong, .6 right
    assert scores["ece"] == pytest.approx((0.3 + 0.5 + 0.4) / 3)


def test_calibration_pools_clips_of_one_bin() -> None:
    p_NC = torch.tensor([[0.61, 0.39], [0.65, 0.35]], dtype=torch.float64)  # both in (9/15, 10/15]
    scores = metrics.score(p_NC.log(), torch.tensor([[1.0, 0], [0, 1]]), "single")
    assert scores["ece"] == pytest.approx(abs(1 - 0.61 - 0.65) / 2)


def test_the_last_bin_includes_certainty() -> None:
    logits_NC = torch.tensor([[1000.0, -1000.0], [logit(0.95), 0.0]], dtype=torch.float64)  # 1, wrong; 0.95, right
    scores = metrics.score(logits_NC, torch.tensor([[0.0, 1], [1, 0]]), "single")
    assert scores["ece"] == pytest.approx(abs((0 - 1) + (1 - 0.95)) / 2)


def test_probabilities_of_0_and_1_are_in_the_outer_bins() -> None:
    logits_NC = torch.tensor([[1000.0, -1000.0]])
    scores = metrics.score(torch.cat([logits_NC, logits_NC.flip(1)]), torch.tensor([[1.0, 0], [0, 1]]), "multi")
    assert (scores["ece"], scores["mAP"], scores["auc"]) == (0.0, 1.0, 1.0)
    assert scores["d_prime"] == pytest.approx(6.7224, abs=1e-4)  # unclipped it would be infinite


def test_multi_label_scores() -> None:
    logits_NC = torch.tensor([[logit(0.9), 0.0, -1.0], [logit(0.8), 1.0, -1.0], [logit(0.2), 2.0, 3.0]])
    y_NC = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 1, 0]])
    scores = metrics.score(logits_NC, y_NC, "multi")
    # tag 0 ranks clips 0, 1, 2: hits at 1 and 3; tag 1 ranks 2, 1, 0: hits at 1 and 3; tag 2 has no clips
    assert scores["mAP"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["auc"] == pytest.approx(0.5)
    assert scores["d_prime"] == pytest.approx(0.0, abs=1e-12)
    assert scores["tags_skipped"] == 1.0
    softplus = [math.log1p(math.exp(z)) for z in (-logit(0.9), logit(0.8), -logit(0.2), 0, 1, -2, -1, -1, 3)]
    assert scores["log_loss"] == pytest.approx(sum(softplus) / 9, rel=1e-6)


def test_d_prime_follows_from_the_auc() -> None:
    """An AUC of Phi(1) = 0.8413 is a d' of sqrt(2); AudioSet's d' of 2.065 is an AUC of 0.928."""
    tags = torch.zeros(10_000, 1)
    tags[:100] = 1  # 100 clips have the tag; each ranks above a share of 0.8413 of those without
    scores_NC = torch.arange(10_000.0).unsqueeze(1)
    scores_NC[:100] = 100 + 0.8413447460685429 * 9900 - 0.5
    scores = metrics.score(scores_NC / 1000, tags, "multi")
    assert scores["auc"] == pytest.approx(0.84134, abs=1e-4)
    assert scores["d_prime"] == pytest.approx(math.sqrt(2), abs=1e-3)


def test_per_tag_leaves_out_tags_without_clips() -> None:
    names = ("dog", "rain", "saw")
    assert metrics.per_tag(P_NC.log(), ONE_NC, names, "single") == {"dog": 1.0, "rain": 0.5}
    logits_NC = torch.tensor([[2.0, 0.0, 0.0], [3.0, 0.0, 1.0]])
    y_NC = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    assert metrics.per_tag(logits_NC, y_NC, names, "multi") == {"dog": 0.5, "saw": 1.0}


def test_every_tag_has_a_row_and_a_reason_where_it_cannot_be_scored() -> None:
    dog, rain, saw = metrics.tag_scores(P_NC.log(), ONE_NC, ("dog", "rain", "saw"), "single").values()
    assert (dog.support, dog.average_precision, dog.recall, dog.reason) == (1, 1.0, 1.0, "")
    assert (rain.support, rain.average_precision, rain.recall) == (2, 1.0, 0.5)
    assert dog.chance == pytest.approx(11 / 18)  # ranked 1, 2 or 3: (1 + 1/2 + 1/3) / 3
    assert saw == metrics.TagScores(0, None, None, None, "no clip has it")
    nan = math.nan
    y_NC = torch.tensor([[1.0, nan, 1], [1, nan, 0]])
    all_have, unknown, mixed = metrics.tag_scores(torch.zeros(2, 3), y_NC, ("a", "b", "c"), "multi").values()
    assert all_have == metrics.TagScores(2, None, None, None, "every clip has it")
    assert unknown == metrics.TagScores(0, None, None, None, "known of no clip")
    assert (mixed.support, mixed.average_precision, mixed.recall) == (1, 0.5, None)


def test_the_loss_of_each_clip() -> None:
    losses = metrics.clip_losses(P_NC.log(), ONE_NC, "single").tolist()
    assert losses == pytest.approx([-math.log(0.7), -math.log(0.4), -math.log(0.6)])
    logits_NC = torch.tensor([[logit(0.9), logit(0.2)], [0.0, 0.0]])
    y_NC = torch.tensor([[1.0, math.nan], [math.nan, math.nan]])
    known, unknown = metrics.clip_losses(logits_NC, y_NC, "multi").tolist()
    assert known == pytest.approx(-math.log(0.9), rel=1e-6)
    assert math.isnan(unknown)


def test_a_tag_that_every_clip_has_is_not_scored() -> None:
    """Any order of its clips is right: an average precision of 1 would say nothing of the model."""
    logits_NC = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0]])
    y_NC = torch.tensor([[1.0, 0], [1, math.nan], [1, 1]])
    scores = metrics.score(logits_NC, y_NC, "multi")
    assert (scores["mAP"], scores["auc"], scores["tags_skipped"]) == (1.0, 1.0, 1.0)
    assert metrics.per_tag(logits_NC, y_NC, ("noise", "dog"), "multi") == {"dog": 1.0}
    known_positives = torch.tensor([[math.nan, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert metrics.score(logits_NC, known_positives, "multi")["tags_skipped"] == 1.0
    one_tag = metrics.score(logits_NC, torch.tensor([[1.0, 0], [1, 0], [1, 0]]), "single")
    assert "mAP" not in one_tag
    assert one_tag["accuracy"] == pytest.approx(1 / 3)


def test_confusion_counts_rows_of_true_tags() -> None:
    matrix_CC = metrics.confusion(P_NC.log(), ONE_NC)
    assert matrix_CC.dtype == torch.int64
    assert matrix_CC.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_cooccurrence_averages_over_clips_with_the_row_s_tag() -> None:
    p_NC = torch.tensor([[0.9, 0.4, 0.1], [0.5, 0.8, 0.3]], dtype=torch.float64)
    matrix_CC = metrics.cooccurrence(p_NC.logit(), torch.tensor([[1.0, 0, 0], [1, 1, 0]]))
    torch.testing.assert_close(matrix_CC[:2], torch.tensor([[0.7, 0.6, 0.2], [0.5, 0.8, 0.3]], dtype=torch.float64))
    assert matrix_CC[2].isnan().all()


def test_agreement_is_a_share_of_clips_or_of_decisions_on_tags() -> None:
    za_NC = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, -1.5], [3.0, 1.0]])
    zb_NC = torch.tensor([[0.0, 2.0], [5.0, -2.0], [-1.5, -1.0], [3.0, 1.0]])
    assert metrics.agreement(za_NC, zb_NC, "single") == 0.75
    assert metrics.agreement(za_NC, zb_NC, "multi") == 7 / 8
    assert metrics.agreement(za_NC, za_NC, "multi") == 1.0


def test_teacher_entropy_in_nats() -> None:
    z_NC = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    assert metrics.teacher_entropy(z_NC, 1.0, "single") == pytest.approx(math.log(4))
    assert metrics.teacher_entropy(z_NC, 1.0, "multi") == pytest.approx(math.log(2))
    sharp_NC = torch.tensor([[2 * logit(0.75), 0.0]])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics.teacher_entropy(sharp_NC, 2.0, "single") == pytest.approx(expected)
    assert metrics.teacher_entropy(sharp_NC, 2.0, "multi") == pytest.approx((expected + math.log(2)) / 2)
    assert metrics.teacher_entropy(torch.tensor([[1000.0, -1000.0]]), 1.0, "single") == 0.0


def test_mistakes_are_named() -> None:
    assert (metrics.primary("single"), metrics.primary("multi")) == ("accuracy", "mAP")
    with pytest.raises(ValueError, match="'both': must be single or multi"):
        metrics.primary("both")
    with pytest.raises(ValueError, match="1 of 2 are not finite"):
        metrics.score(torch.tensor([[math.nan, 0.0]]), torch.tensor([[1.0, 0.0]]), "single")
    with pytest.raises(ValueError, match="no tag has clips both with and without it"):
        metrics.score(torch.zeros(2, 2), torch.tensor([[1.0, 0], [1, 0]]), "multi")
