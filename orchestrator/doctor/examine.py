"""`antiphon doctor`: all nodes of a cluster, or this machine, are looked at and compared."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

from orchestrator.doctor.findings import Finding, judge, judge_clocks, judge_links
from orchestrator.doctor.network import try_links
from orchestrator.doctor.node_facts import Subject, look
from orchestrator.storage import object_store
from orchestrator.training.ray_cluster import connect, prepare_environment
from orchestrator.training.ray_nodes import alive_nodes, ask_nodes, on_node

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
        nodes = alive_nodes(ray)
        with _seen_by_all(subject) as looked_at:
            answers = ask_nodes(ray, look, looked_at, nodes=nodes, timeout_s=NODE_S)
        facts = {answer.node: answer.value for answer in answers if not answer.error}
        answering = [node for node in nodes if node[1] in facts]
        found = [_silent(answer.node, answer.error) for answer in answers if answer.error]
        if facts:
            found += judge(facts, cache_gb=cache_gb)
            skews = _skews(ray, answering)
            found += [judge_clocks(skews)] if skews else []
        return [*found, *judge_links(try_links(ray, answering))]
    finally:
        ray.shutdown()


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
                there = ray.get(on_node(ray, _clock, node).remote(), timeout=NODE_S)
                after = time.time()
                tries.append((after - before, there - (before + after) / 2))
        if tries:
            skews[address] = min(tries)[1]
    return skews
