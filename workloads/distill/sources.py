"""Where the teacher logits of an edge come from.

Axes: B clips of a shard, M mel bands, F frames, C tags.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workloads.data.shard import Shard
from workloads.models.tagger import Tagger


class TeacherSource(Protocol):
    """What the loop asks for an edge's teacher logits, whatever the teacher is."""

    def logits(self, shard: Shard, student_outputs: Mapping[str, Tensor]) -> Tensor:
        """Raw logits_BC (before temperature), fp32, without gradient.

        `student_outputs` are this shard's training forwards: logits_BC by model.
        """
        ...


@dataclass(frozen=True)
class TrainingPeer:
    """A teacher that trains in the same step: its training forward is used, detached, without a second forward."""

    name: str

    def logits(self, shard: Shard, student_outputs: Mapping[str, Tensor]) -> Tensor:
        return student_outputs[self.name].detach().float()


@dataclass(frozen=True)
class FrozenTeacher:
    """A teacher that does not train in this step, or a copy (snapshot, EMA): eval mode, no gradient, fixed buffers."""

    tagger: Callable[[], Tagger]  # looked up in every step
    view: str  # "clean": without augmentation, whatever the student's view is
    autocast: Callable[[], torch.autocast]

    def logits(self, shard: Shard, student_outputs: Mapping[str, Tensor]) -> Tensor:
        tagger = self.tagger()
        view = shard.clean() if self.view == "clean" else shard
        assert not tagger.training, "a frozen teacher must be in eval mode, or batch norm would use this batch"
        with torch.no_grad():
            mel_BMF = view.mel(tagger.front_end)
            with self.autocast():
                return tagger(mel_BMF).float()
