"""State dicts with EfficientAT's names and shapes, randomly drawn, and the logits that its own code gave for them."""

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
    """A recorded case; `shapes` replaces some shapes, for which no logits were recorded.

    Some tensors are scaled by a recorded gain. Batch norms' means and variances are scaled to their input: as drawn
    they are much larger, and the logits would not depend on the sound or the layers before. DyMN's dynamic kernels are
    made larger and its kernel attention more even; otherwise the network would be chaotic and amplify rounding errors.
    """
    recorded = json.loads((DATA / f"{name}.json").read_text())
    state = keyed_state(recorded["shapes"] | shapes)
    state |= {tensor: state[tensor] * gain for tensor, gain in recorded["gains"].items()}
    state |= {constant: torch.tensor(values) for constant, values in recorded["constants"].items()}
    return Case(state, torch.tensor(recorded["logits"]))
