"""Where what an edge carries comes from: a teacher's outputs for the clips of a shard.

Axes: B clips of a shard, M mel bands, F frames, C tags, D features of an embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workloads.data.shard import Shard
from workloads.models.tagger import Tagger

Outputs = Mapping[str, Tensor]  # by what an edge carries: logits_BC before temperature, embedding_BD; in fp32


class TeacherSource(Protocol):
    """What the loop asks for a teacher's outputs, whatever the teacher is."""

    def outputs(self, shard: Shard, student_outputs: Mapping[str, Outputs]) -> Outputs:
        """What the teacher's edges carry, without gradient.

        `student_outputs` are those of this shard's training forwards, by model.
        """
        ...


def tagger_outputs(tagger: Tagger, mel_BMF: Tensor, *, with_embedding: bool) -> dict[str, Tensor]:
    """Logits of a tagger, and the embedding if it is needed, from one forward."""
    if not with_embedding:
        return {"logits": tagger(mel_BMF).float()}
    found = tagger.outputs(mel_BMF)
    return {"logits": found.logits_BC.float(), "embedding": found.embedding_BD.float()}


@dataclass(frozen=True)
class TrainingPeer:
    """A teacher that trains in the same step: its training forward is used, detached, without a second forward."""

    name: str

    def outputs(self, shard: Shard, student_outputs: Mapping[str, Outputs]) -> Outputs:
        return {kind: tensor.detach() for kind, tensor in student_outputs[self.name].items()}


@dataclass(frozen=True)
class FrozenTeacher:
    """A teacher that does not train in this step, or a copy (snapshot, EMA): eval mode, no gradient, fixed buffers."""

    tagger: Callable[[], Tagger]  # looked up in every step
    view: str  # "clean": without augmentation, whatever the student's view is
    autocast: Callable[[], torch.autocast]
    with_embedding: bool = False

    def outputs(self, shard: Shard, student_outputs: Mapping[str, Outputs]) -> Outputs:
        tagger = self.tagger()
        view = shard.clean() if self.view == "clean" else shard
        assert not tagger.training, "a frozen teacher must be in eval mode, or batch norm would use this batch"
        with torch.no_grad():
            mel_BMF = view.mel(tagger.front_end)
            with self.autocast():
                return tagger_outputs(tagger, mel_BMF, with_embedding=self.with_embedding)
