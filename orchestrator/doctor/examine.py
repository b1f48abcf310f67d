"""`antiphon doctor`: all nodes of a cluster, or this machine, are looked at and compared."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

from orchestrator.doctor.findings import Finding, judge, judge_clocks, judge_links
from orchestrator.doctor.network import try_links
from orchestrator.doctor.node_facts import NodeFacts, Subject, look
from orchestrator.storage import object_store
from orchestrator.training.ray_cluster import connect, prepare_environment
from workloads.runtime.text import one_line

HERE = "this machine"
NODE_S = 300.0  # how long a node may take to answer
CLOCK_TRIES = 5


def examine(subject: Subject, *, address: str, cache_gb: float) -> list[Finding]:
    """Look at this machine, or with an address at every node of that cluster; Unavailable where it does not answer.

    One task without CPUs runs on each node, so a busy cluster can be examined too.
    """
    if not address:
        return judge({HERE: look(subject)}, cache_gb=cache_gb)
    address = prepare_environment(address)  # before Ray is imported
    import ray

    connect(ray, address, at_least=1)
    try:
        nodes = _named(ray)
        with _seen_by_all(subject) as looked_at:
            facts, silent = _look_at(ray, nodes, looked_at)
        answering = [node for node in nodes if node[1] in facts]
        found = [_silent(node, reason) for node, reason in silent.items()]
        if facts:
            found += judge(facts, cache_gb=cache_gb)
            skews = _skews(ray, answering)
            found += [judge_clocks(skews)] if skews else []
        return [*found, *judge_links(try_links(ray, answering))]
    finally:
        ray.shutdown()


def _named(ray: Any) -> list[tuple[str, str]]:
    """Id and address of each node; several on one machine are told apart by their ids."""
    alive = [(node["NodeID"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
    addresses = [address for _, address in alive]
    return [(node, address if addresses.count(address) == 1 else f"{address}/{node[:8]}") for node, address in alive]


@contextmanager
def _seen_by_all(subject: Subject) -> Iterator[Subject]:
    """Write a file into the storage that every node must see; a folder may be there on each node and not be shared.

    Where this machine cannot write, the nodes are asked without it: they say why.
    """
    if not subject.storage:
        yield subject
        return
    uri = object_store.join(subject.storage, f".doctor-{uuid4().hex}")
    try:
        object_store.put_text(uri, "here")
    except Exception:  # each kind of store raises other exception types
        yield subject
        return
    try:
        yield replace(subject, seen=uri)
    finally:
        object_store.remove_file(uri)


def _silent(node: str, reason: str) -> Finding:
    fix = "install antiphon with its packages there, and look at the node's log in Ray's dashboard"
    return Finding("nodes", "problem", f"{node}: {reason}", fix)


def _on(ray: Any, function: Any, node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(function).options(scheduling_strategy=strategy)


def _look_at(
    ray: Any, nodes: Sequence[tuple[str, str]], subject: Subject
) -> tuple[dict[str, NodeFacts], dict[str, str]]:
    """What the nodes have found, by address; and why the others have not."""
    answers = {address: _on(ray, look, node).remote(subject) for node, address in nodes}
    ray.wait(list(answers.values()), num_returns=len(answers), timeout=NODE_S)
    facts: dict[str, NodeFacts] = {}
    silent: dict[str, str] = {}
    for address, answer in answers.items():
        try:
            facts[address] = ray.get(answer, timeout=0)
        except ray.exceptions.GetTimeoutError:
            silent[address] = f"no answer within {NODE_S:.0f} s"
        except ray.exceptions.RayError as error:
            silent[address] = one_line(error)
    return facts, silent


def _clock() -> float:
    return time.time()  # which Ray takes no task of, as it is written in C


def _skews(ray: Any, nodes: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Seconds by which each node's clock is ahead, from the quickest of some tries: half a round trip uncertain."""
    skews = {}
    for node, address in nodes:
        tries = []
        for _ in range(CLOCK_TRIES):
            before = time.time()
            with suppress(ray.exceptions.RayError):  # a node that has gone meanwhile
                there = ray.get(_on(ray, _clock, node).remote(), timeout=NODE_S)
                after = time.time()
                tries.append((after - before, there - (before + after) / 2))
        if tries:
            skews[address] = min(tries)[1]
    return skews
