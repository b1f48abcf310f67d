"""Merged logits of a recording's windows are those of the mean probability, and lose nothing near 0 and 1."""

import pytest
import torch

from workloads.models.probabilities import merge_windows, probabilities


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_merged_logits_are_those_of_the_mean_probability(labels: str) -> None:
    logits_WC = 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    merged_C = merge_windows(logits_WC, labels)
    torch.testing.assert_close(
        probabilities(merged_C[None], labels)[0], probabilities(logits_WC, labels).mean(0), rtol=1e-12, atol=0
    )
    assert torch.equal(merge_windows(logits_WC[:1], labels), logits_WC[0])


def test_probabilities_near_0_and_1_lose_nothing() -> None:
    """sigmoid(40) is 1 in float32: its logit would be infinite; the mean of 40 and 40 is 40."""
    logits_WC = torch.tensor([[40.0, -100.0], [40.0, -100.0]])
    torch.testing.assert_close(merge_windows(logits_WC, "multi"), torch.tensor([40.0, -100.0]))
    merged_C = merge_windows(torch.tensor([[0.0, -120.0], [0.0, -120.0]]), "single")
    torch.testing.assert_close(merged_C, torch.tensor([0.0, -120.0]))


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_a_window_without_numbers_is_not_hidden_by_the_others(labels: str) -> None:
    for bad in (float("inf"), float("-inf"), float("nan")):
        merged_C = merge_windows(torch.tensor([[0.0, 1.0], [bad, 1.0]]), labels)
        assert merged_C[0].isnan()
