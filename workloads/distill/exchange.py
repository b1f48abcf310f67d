"""What passes between workers that hold different models: what the edges of a phase carry, shard by shard.

A worker posts what its teachers say before it collects what it needs, so that models which teach each other do not
wait for each other. Messages between two workers are in the order of the phase's edges. Nothing of it has a gradient:
teacher outputs are constants.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from workloads.config.edge import Edge
from workloads.data.shard import Shard
from workloads.distill.output_sizes import OutputSizes
from workloads.distill.schedule import Phase
from workloads.distill.sources import Outputs, TeacherKey, TeacherSource, teacher_key
from workloads.runtime.placement import Placement


class Message(NamedTuple):
    """One kind of output of a teacher for one shard, from or to another worker."""

    key: TeacherKey
    kind: str  # what the edge carries
    peer: int  # the other worker's rank among all
    tag: int


@dataclass(eq=False)
class Exchange:
    """The messages of one worker in one phase."""

    placement: Placement
    phase: Phase
    sizes: OutputSizes
    clips: int  # of a shard
    device: torch.device
    bytes_sent: int = 0
    bytes_received: int = 0
    outgoing: tuple[Message, ...] = field(init=False)
    incoming: tuple[Message, ...] = field(init=False)
    _received: dict[TeacherKey, dict[str, Tensor]] = field(default_factory=dict)
    _sending: list[Tensor] = field(default_factory=list)  # kept until they have been sent
    _works: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outgoing = self._messages(lambda edge: (edge.teacher, edge.student))
        self.incoming = self._messages(lambda edge: (edge.student, edge.teacher))

    def _messages(self, here_and_there: Callable[[Edge], tuple[str, str]]) -> tuple[Message, ...]:
        """Of the edges with one end on this worker and the other one elsewhere; each kind goes to a worker once."""
        found: dict[tuple[TeacherKey, str, int], Message] = {}
        for tag, edge in enumerate(self.phase.edges):
            if edge.store:
                continue
            here, there = here_and_there(edge)
            if self.placement.holds(here) and not self.placement.holds(there):
                peer = self.placement.partner(there)
                found.setdefault(
                    (teacher_key(edge), edge.carries, peer), Message(teacher_key(edge), edge.carries, peer, tag)
                )
        return tuple(found.values())

    def post(self, outputs: Mapping[TeacherKey, Outputs]) -> None:
        """Begin to send what the teachers here say of a shard, and to receive what others say of it."""
        if not self.outgoing and not self.incoming:
            return
        self.finish()  # of the shard before
        operations = []
        for message in self.outgoing:
            tensor = outputs[message.key][message.kind].contiguous()
            self._sending.append(tensor)
            self.bytes_sent += tensor.nbytes
            operations.append(self._operation(dist.isend, tensor, message))
        for message in self.incoming:
            shape = self.sizes[message.key.teacher].of(message.kind)
            tensor = torch.empty(self.clips, *shape, device=self.device)
            self._received.setdefault(message.key, {})[message.kind] = tensor
            self.bytes_received += tensor.nbytes
            operations.append(self._operation(dist.irecv, tensor, message))
        self._works = dist.batch_isend_irecv(operations)

    def _operation(self, what: Callable[..., Any], tensor: Tensor, message: Message) -> dist.P2POp:
        return dist.P2POp(what, tensor, message.peer, group=self.placement.exchange, tag=message.tag)

    def collect(self, key: TeacherKey) -> Outputs:
        """What a teacher elsewhere says of the shard that was posted last; waits for it."""
        self._wait()
        return self._received[key]

    def finish(self) -> None:
        """Wait until all is sent and received; called at the end of a step."""
        self._wait()
        self._sending, self._received = [], {}

    def _wait(self) -> None:
        works, self._works = self._works, []
        for work in works:
            work.wait()


@dataclass(frozen=True)
class RemoteTeacher:
    """A teacher on another worker, which sends what it says of the same shard."""

    key: TeacherKey
    exchange: Exchange

    def outputs(self, shard: Shard, student_outputs: Mapping[str, Outputs]) -> Outputs:
        return self.exchange.collect(self.key)


def ask_teachers(
    sources: Mapping[str, TeacherSource],  # by edge
    phase: Phase,
    exchange: Exchange,
    shard: Shard,
    student_outputs: Mapping[str, Outputs],
) -> dict[TeacherSource, Outputs]:
    """What each teacher of these edges says of a shard: those on this worker are asked first, and what others need is
    posted before what they say is collected."""
    elsewhere = {source for source in sources.values() if isinstance(source, RemoteTeacher)}
    here = [source for source in dict.fromkeys(sources.values()) if source not in elsewhere]
    outputs = {source: source.outputs(shard, student_outputs) for source in here}
    exchange.post(
        {teacher_key(edge): outputs[sources[edge.key]] for edge in phase.edges if sources.get(edge.key) in outputs}
    )
    return outputs | {source: source.outputs(shard, student_outputs) for source in elsewhere}
