"""From logits to probabilities, for both kinds of labels. Does not depend on models or data sets.

Axes: B clips, W windows of one recording, C tags.
"""

import math

from torch import Tensor
from torch.nn.functional import softplus


def probabilities(logits_BC: Tensor, labels: str) -> Tensor:
    """The probability of each tag, in the precision of the logits: softmax for "single" labels, sigmoid for "multi"."""
    return logits_BC.softmax(1) if labels == "single" else logits_BC.sigmoid()


def log_sigmoid(logits: Tensor) -> Tensor:
    """The logarithm of the sigmoid, also in exported files.

    There torch's own becomes log(sigmoid), and ONNX Runtime's sigmoid in fp32 is 0 from -18 on: the logarithm -inf.
    """
    return -softplus(-logits)


def merge_windows(logits_WC: Tensor, labels: str) -> Tensor:
    """logits_C whose probabilities are the mean of the windows' probabilities; of a single window its own logits.

    In logarithms, so that a probability near 0 or 1 loses nothing: for "single" labels log(mean softmax), for "multi"
    log(mean p) - log(1 - mean p). NaN where a window's logit is not finite.
    """
    if len(logits_WC) == 1:
        return logits_WC[0]
    logits_WC = logits_WC.where(logits_WC.isfinite(), math.nan)
    if labels == "single":
        return logits_WC.log_softmax(1).logsumexp(0) - math.log(len(logits_WC))
    return log_sigmoid(logits_WC).logsumexp(0) - log_sigmoid(-logits_WC).logsumexp(0)


def merge_all_windows(logits_BWC: Tensor, labels: str, *, only_one: Tensor) -> Tensor:
    """logits_BC as `merge_windows` gives them of each of B recordings with W windows, for exported graphs.

    There W is no number that a branch could ask: `only_one`, a tensor, says whether it is 1. Finite logits only.
    """
    count = logits_BWC.shape[1]
    if labels == "single":
        merged_BC = logits_BWC.log_softmax(2).logsumexp(1) - only_one.new_full((), count, dtype=logits_BWC.dtype).log()
    else:
        merged_BC = log_sigmoid(logits_BWC).logsumexp(1) - log_sigmoid(-logits_BWC).logsumexp(1)
    return logits_BWC[:, 0].where(only_one, merged_BC)
