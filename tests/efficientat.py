"""State dicts as EfficientAT's own code has them, drawn anew, and the logits its code gave for them."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.official import keyed_state

DATA = Path(__file__).parent / "data" / "official"


class Case(NamedTuple):
    """Weights under EfficientAT's names, and its logits_BC of `waveform(10, 32_000)`, the first 20 of them."""

    state: dict[str, Tensor]
    logits_BC: Tensor


def case(name: str, **shapes: list[int]) -> Case:
    """A recorded case; `shapes` replaces some, for which no logits were recorded.

    Some tensors are scaled by a recorded gain, batch norms' means and variances to what reaches them: as drawn they
    would drown it, and the logits would tell nothing about the sound or the layers before. DyMN's dynamic kernels are
    made larger and its choices calmer, or the network would be chaotic and rounding all that one compares.
    """
    recorded = json.loads((DATA / f"{name}.json").read_text())
    state = keyed_state(recorded["shapes"] | shapes)
    state |= {tensor: state[tensor] * gain for tensor, gain in recorded["gains"].items()}
    state |= {constant: torch.tensor(values) for constant, values in recorded["constants"].items()}
    return Case(state, torch.tensor(recorded["logits"]))
