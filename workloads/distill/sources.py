"""Where what an edge carries comes from: a teacher's outputs for the clips of a shard.

Axes: B clips of a shard, M mel bands, F frames, C tags, D features of an embedding or of a step, P steps in time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from workloads.config.edge import Edge
from workloads.data.shard import Shard
from workloads.models.profiles import outputs_and_profile
from workloads.models.tagger import Tagger

# By what an edge carries: logits_BC before temperature, embedding_BD, a teacher's profile temporal_BP, frames_BPC
# before temperature; of a student sequence_BPD too, from which its own profile is made. In fp32.
Outputs = Mapping[str, Tensor]


class TeacherKey(NamedTuple):
    """What edges have in common that share one forward of their teacher; outputs of teachers are kept by it."""

    teacher: str
    view: str
    source: str


def teacher_key(edge: Edge) -> TeacherKey:
    return TeacherKey(edge.teacher, edge.view, edge.source)


class TeacherSource(Protocol):
    """What the loop asks for a teacher's outputs, whatever the teacher is."""

    def outputs(self, shard: Shard, student_outputs: Mapping[str, Outputs]) -> Outputs:
        """What the teacher's edges carry, without gradient.

        `student_outputs` are those of this shard's training forwards, by model.
        """
        ...


def tagger_outputs(tagger: Tagger, mel_BMF: Tensor, *, needs: frozenset[str]) -> dict[str, Tensor]:
    """Logits of a tagger, and of `embedding`, `sequence`, `frames` and `temporal` what is needed, from one forward."""
    if not needs:
        return {"logits": tagger(mel_BMF).float()}
    outputs: dict[str, Tensor] = {}
    if "temporal" in needs:
        found, outputs["temporal"] = outputs_and_profile(tagger, mel_BMF)
    else:
        found = tagger.outputs(mel_BMF)
    outputs |= {"logits": found.logits_BC, "embedding": found.embedding_BD, "sequence": found.sequence_BPD}
    if "frames" in needs:
        assert found.frames_BPC is not None, (
            "the recipe's checks let edges carry frames between networks that have them"
        )
        outputs["frames"] = found.frames_BPC
    return {kind: tensor.float() for kind, tensor in outputs.items() if kind == "logits" or kind in needs}


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
    needs: frozenset[str] = frozenset()  # beside logits

    def outputs(self, shard: Shard, student_outputs: Mapping[str, Outputs]) -> Outputs:
        tagger = self.tagger()
        view = shard.clean() if self.view == "clean" else shard
        assert not tagger.training, "a frozen teacher must be in eval mode, or batch norm would use this batch"
        with torch.no_grad():
            mel_BMF = view.mel(tagger.front_end)
            with self.autocast():
                return tagger_outputs(tagger, mel_BMF, needs=self.needs)
