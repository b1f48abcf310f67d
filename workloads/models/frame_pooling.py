"""From logits of steps in time to those of a clip, so that one head says what sounds and when.

Does not depend on any family. Axes: B clips, P steps in time, D features, C tags.
"""

import torch
from torch import Tensor, nn

from workloads.models.backbone import Outputs
from workloads.models.probabilities import log_sigmoid


def pool_frames(frames_BPC: Tensor, pool: str) -> Tensor:
    """Logits_BC of clips from those of their steps, in fp32: the largest, or those of linear softmax pooling.

    Linear softmax weighs a step's probability by itself: p = sum p_t^2 / sum p_t (Wang, Li, Metze 2019, arXiv
    1810.09050). Computed in logarithms, since sum p_t may round to 0: logit p = ln sum p_t^2 - ln sum p_t (1 - p_t).
    """
    frames_BPC = frames_BPC.float()
    if pool == "max":
        return frames_BPC.amax(1)
    log_p, log_not_p = log_sigmoid(frames_BPC), log_sigmoid(-frames_BPC)
    return torch.logsumexp(2 * log_p, 1) - torch.logsumexp(log_p + log_not_p, 1)


def with_frames(outputs: Outputs, head: nn.Module, pool: str) -> Outputs:
    """The outputs with frame logits, the head's for each step, and with clip logits pooled from these.

    Unchanged where `pool` is "none": the head then reads the clip's embedding.
    """
    if pool == "none":
        return outputs
    frames_BPC = head(outputs.sequence_BPD)
    return outputs._replace(logits_BC=pool_frames(frames_BPC, pool), frames_BPC=frames_BPC)
