"""Frozen teachers outside of the workers: servers that are asked ahead what a shard's teachers say of it.

A worker sends the number of a step and of a shard, and gets logits. The server reads the same clips in the same views
itself, because a shard depends on the recipe, the step and the index only; the keys in its answer prove it.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from workloads.data.shard import Shard, ViewKey
from workloads.distill.sources import Outputs, TeacherKey
from workloads.runtime.placement import WorkerGroup


class ServedModel(NamedTuple):
    """A frozen teacher for one phase."""

    key: TeacherKey
    needs: frozenset[str]  # beside logits
    weights: bytes  # its state dict as safetensors


class ServedOutputs(NamedTuple):
    """What the teachers of a phase say of one shard."""

    keys: tuple[ViewKey, ...]  # of the shard, after damaged clips were replaced
    outputs: Mapping[TeacherKey, Outputs]  # on the CPU


class Answer(Protocol):
    """An answer that is on its way."""

    def result(self) -> ServedOutputs:
        """Waits for it; raises what its server has raised."""
        ...


class TeacherService(Protocol):
    """The servers, as the workers see them. Each worker asks for its own shards."""

    def fingerprints(self) -> list[str]:
        """Those of the data that the servers read; waits until all are ready. Called by rank 0."""
        ...

    def teach(self, models: Sequence[ServedModel]) -> None:
        """Give all servers the teachers of a phase, in the place of those before; waits for it. Called by rank 0."""
        ...

    def ask(self, step: int, index: int) -> Answer:
        """Ask for what the teachers say of a shard; returns at once."""
        ...


def require_same_data(service: TeacherService | None, everyone: WorkerGroup, fingerprint: str) -> None:
    """ValueError on all workers where there are no servers, or they read other clips than the workers."""
    mistake = ""
    if service is None:
        mistake = (
            "placement = 'service': needs Ray, whose actors hold the teachers; --set placement=colocated trains the "
            "same in this process"
        )
    elif everyone.rank == 0 and any(other != fingerprint for other in service.fingerprints()):
        mistake = (
            "data.root: the servers of the teachers read other clips than the workers; compare `antiphon data check` "
            "on their nodes"
        )
    if mistake := everyone.gather(mistake)[0]:
        raise ValueError(mistake)


@dataclass(eq=False)
class AnswersAhead:
    """The answers for a worker's shards in the order in which it trains on them; asked for `ahead` shards before."""

    service: TeacherService
    places: Iterator[tuple[int, int]]  # step and index of each shard
    ahead: int
    bytes_received: int = 0
    _asked: deque[Answer] = field(default_factory=deque)
    _newest: ServedOutputs | None = None

    def of(self, shard: Shard) -> ServedOutputs:
        """What the teachers say of this shard, which is the next one, or the one of the call before."""
        if self._newest is None or self._newest.keys != shard.keys:
            missing = self.ahead + 1 - len(self._asked)
            self._asked.extend(self.service.ask(step, index) for step, index in islice(self.places, missing))
            self._newest = self._asked.popleft().result()
            self.bytes_received += sum(
                tensor.nbytes for outputs in self._newest.outputs.values() for tensor in outputs.values()
            )
        if self._newest.keys != shard.keys:
            raise RuntimeError(
                f"the server of the teachers has read other clips ({self._newest.keys[0]} first, where the worker has "
                f"{shard.keys[0]}): do its node and the worker's have the same version of antiphon?"
            )
        return self._newest


@dataclass(frozen=True)
class ServedTeacher:
    """A teacher in the servers."""

    key: TeacherKey
    answers: AnswersAhead
    device: torch.device

    def outputs(self, shard: Shard, student_outputs: Mapping[str, Outputs]) -> Outputs:
        outputs: Mapping[str, Tensor] = self.answers.of(shard).outputs[self.key]
        return {kind: tensor.to(self.device) for kind, tensor in outputs.items()}
