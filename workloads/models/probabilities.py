"""From logits to probabilities, for both kinds of labels. Does not depend on models or data sets.

Axes: B clips, C tags.
"""

from torch import Tensor


def probabilities(logits_BC: Tensor, labels: str) -> Tensor:
    """The probability of each tag, in the precision of the logits: softmax for "single" labels, sigmoid for "multi"."""
    return logits_BC.softmax(1) if labels == "single" else logits_BC.sigmoid()
