"""Whether two nodes of a cluster can exchange tensors, and how fast: as workers do it, by gloo."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.training.ray_nodes import on_node
from workloads.runtime.text import one_line

MB = 16  # that are exchanged, each way
REPEATS = 3
MOST_NODES = 16  # of which all pairs are tried; of more only those that follow one another
PAIR_S = 120.0  # how long a pair may take, the import of torch included


@dataclass(frozen=True)
class Link:
    """Two nodes by address; the rate at which both send at once, or why they cannot."""

    one: str
    other: str
    mb_per_s: float = 0.0
    error: str = ""


def pairs_of(count: int) -> list[tuple[int, int]]:
    """The pairs of so many nodes that are tried: all, or of many nodes a ring."""
    if count <= MOST_NODES:
        return list(itertools.combinations(range(count), 2))
    return [(number, (number + 1) % count) for number in range(count)]


def try_links(ray: Any, nodes: Sequence[tuple[str, str]]) -> list[Link]:
    """Try pairs of nodes, (id, ADDRESS or ADDRESS/...) each, one pair after the other: they would share the network."""
    return [_try_pair(ray, nodes[one], nodes[other]) for one, other in pairs_of(len(nodes))]


def _try_pair(ray: Any, one: tuple[str, str], other: tuple[str, str]) -> Link:
    answers: list[Any] = []
    try:
        port = ray.get(on_node(ray, _free_port, one[0]).remote(), timeout=PAIR_S)
        meeting = f"tcp://{one[1].partition('/')[0]}:{port}"
        answers = [on_node(ray, _exchange, node).remote(rank, meeting) for rank, (node, _) in enumerate((one, other))]
        rates = ray.get(answers, timeout=PAIR_S)
    except ray.exceptions.GetTimeoutError:
        for answer in answers:
            ray.cancel(answer, force=True)
        return Link(one[1], other[1], error=f"no answer within {PAIR_S:.0f} s")
    except ray.exceptions.RayError as error:
        return Link(one[1], other[1], error=one_line(error))
    return Link(one[1], other[1], mb_per_s=min(rates))


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _exchange(rank: int, address: str) -> float:
    """Runs on both nodes: megabytes a second that each sends while it receives as many; the best of some tries."""
    import torch
    import torch.distributed as dist

    from orchestrator.training.ray_network import use_node_interface  # Ray Train takes seconds to import

    use_node_interface()
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        mine, theirs = torch.ones(MB * 250_000), torch.empty(MB * 250_000)
        best = float("inf")
        for _ in range(REPEATS):
            dist.barrier()
            began = time.monotonic()
            sent = dist.isend(mine, 1 - rank)
            dist.recv(theirs, 1 - rank)
            assert sent is not None
            sent.wait()
            best = min(best, time.monotonic() - began)
        return MB / best
    finally:
        dist.destroy_process_group()
