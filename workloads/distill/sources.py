"""Where an edge's teacher logits come from.

Axes: B clips of a shard, C tags.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workloads.data.batches import Shard
from workloads.models.tagger import Tagger


class TeacherSource(Protocol):
    """Where an edge gets its teacher's logits; the loop asks and knows no more."""

    def logits(self, shard: Shard, student_outputs: Mapping[str, Tensor]) -> Tensor:
        """Raw logits_BC without gradient; `spoken` are this step's training forwards by model."""
        ...


@dataclass(frozen=True)
class Peer:
    """A teacher that learns in the same step: its training forward serves twice."""

    name: str

    def logits(self, shard: Shard, student_outputs: Mapping[str, Tensor]) -> Tensor:
        return student_outputs[self.name].detach().float()


@dataclass(frozen=True)
class Frozen:
    """A teacher that stands still in this step, or a copy that does: eval mode, no gradient, buffers at rest."""

    tagger: Callable[[], Tagger]
    view: str
    autocast: Callable[[], torch.autocast]

    def logits(self, shard: Shard, student_outputs: Mapping[str, Tensor]) -> Tensor:
        tagger, heard = self.tagger(), shard.clean() if self.view == "clean" else shard
        assert not tagger.training, "a frozen teacher must be in eval mode: batch norm would learn from this batch"
        with torch.no_grad():
            mel_BMF = heard.mel(tagger.front_end)
            with self.autocast():
                return tagger(mel_BMF).float()
