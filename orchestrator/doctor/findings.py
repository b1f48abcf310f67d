"""What is wrong with the nodes of a cluster, judged from what each of them has found. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.doctor.network import Link
from orchestrator.doctor.node_facts import NodeFacts

SLOW_MS = 500.0  # a storage operation
SKEW_S = 5.0  # clocks are not trusted for what is stored; logs and reports are read side by side
SMALL_SHARED_MEMORY = 2**30  # bytes; Ray's object store lies there, and containers give 64 MB
SLOW_MB_S = 50.0  # between two nodes: a gigabit line carries 117

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the result; `fix` says what to do, empty where nothing is."""

    check: str
    level: Level
    said: str
    fix: str = ""


def judge(facts: Mapping[str, NodeFacts], *, cache_gb: float) -> list[Finding]:
    """Findings about nodes by address, which agree where they must, and can do what a run needs."""
    return [
        _versions(facts),
        *_storage(facts),
        *_data(facts),
        *_tracking(facts),
        *_gpus(facts),
        *_shared_memory(facts),
        *_cache(facts, cache_gb),
    ]


def judge_clocks(skews: Mapping[str, float]) -> Finding:
    """`skews`: seconds by which a node's clock is ahead of the driver's."""
    worst = max(skews, key=lambda node: abs(skews[node]))
    if abs(skews[worst]) > SKEW_S:
        said = f"the clock of {worst} is {skews[worst]:+.1f} s from this one's"
        return Finding("clocks", "warning", said, "run NTP on all nodes: times in logs and reports do not agree")
    return Finding("clocks", "ok", f"within {max(map(abs, skews.values())):.1f} s of this one")


def judge_links(links: Sequence[Link]) -> list[Finding]:
    """Findings about pairs of nodes."""
    broken = [link for link in links if link.error]
    if broken:
        first = broken[0]
        said = f"{len(broken)} of {len(links)} pairs cannot exchange: {first.one} and {first.other}: {first.error}"
        fix = "open all ports between the nodes, or set GLOO_SOCKET_IFNAME on each to the interface between them"
        return [Finding("network", "problem", said, fix)]
    if not links:
        return []
    slowest = min(links, key=lambda link: link.mb_per_s)
    said = f"{len(links)} pairs exchange by gloo, the slowest {slowest.mb_per_s:.0f} MB/s"
    if slowest.mb_per_s < SLOW_MB_S:
        said += f" ({slowest.one} and {slowest.other})"
        return [Finding("network", "warning", said, "gradients will take long: put the nodes into one network")]
    return [Finding("network", "ok", said)]


def _versions(facts: Mapping[str, NodeFacts]) -> Finding:
    names = {package for each in facts.values() for package in each.versions}
    for package in sorted(names):
        by_version: dict[str, list[str]] = {}
        for node, each in facts.items():
            by_version.setdefault(each.versions[package], []).append(node)
        if len(by_version) > 1:
            said = "; ".join(f"{package} {version} on {', '.join(nodes)}" for version, nodes in by_version.items())
            return Finding("versions", "problem", said, "install the same constraints on all nodes, or use one image")
    versions = next(iter(facts.values())).versions
    return Finding("versions", "ok", ", ".join(f"{package} {version}" for package, version in versions.items()))


def _storage(facts: Mapping[str, NodeFacts]) -> list[Finding]:
    found = []
    lacking = [node for node, each in facts.items() if each.has_credentials is False]
    if lacking:
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY there, or give the nodes a role"
        found.append(Finding("credentials", "problem", f"no credentials for S3 on {', '.join(lacking)}", fix))
    for node, each in facts.items():
        if each.storage_error:
            fix = "give a folder that all nodes share, or s3://bucket/prefix that they may read and write"
            return [*found, Finding("storage", "problem", f"{node}: {each.storage_error}", fix)]
    timed = [(ms, name, node) for node, each in facts.items() for name, ms in each.storage_ms.items()]
    if not timed:
        return found
    ms, name, node = max(timed)
    said = f"written, read and removed by all nodes; the slowest step took {ms:.0f} ms ({name}, {node})"
    if ms > SLOW_MS:
        return [*found, Finding("storage", "warning", said, "look for a bucket nearer to the nodes")]
    return [*found, Finding("storage", "ok", said)]


def _data(facts: Mapping[str, NodeFacts]) -> list[Finding]:
    fix = "copy the data to the same path on all nodes, or pack it: antiphon data pack RECIPE --out s3://bucket/prefix"
    return _problems(
        "data", {node: each.data_error and f"data.root: {each.data_error}" for node, each in facts.items()}, fix
    )


def _tracking(facts: Mapping[str, NodeFacts]) -> list[Finding]:
    fix = "start the server, open its port to the nodes, or give --tracking none"
    return _problems("tracking", {node: each.tracking_error for node, each in facts.items()}, fix)


def _problems(check: str, errors: Mapping[str, str], fix: str) -> list[Finding]:
    """A problem for each node that has an error."""
    return [Finding(check, "problem", f"{node}: {error}", fix) for node, error in errors.items() if error]


def _gpus(facts: Mapping[str, NodeFacts]) -> list[Finding]:
    known = {node: each.gpus for node, each in facts.items() if each.gpus is not None}
    without = [node for node, gpus in known.items() if not gpus]
    if not known:
        return []
    if len(without) == len(known):
        fix = 'install a driver and torch for CUDA, or set train.device = "cpu"'
        return [Finding("gpus", "problem", "torch finds a GPU on no node", fix)]
    said = "; ".join(f"{node}: {', '.join(gpus) or 'none'}" for node, gpus in known.items())
    return [Finding("gpus", "ok", said)]


def _shared_memory(facts: Mapping[str, NodeFacts]) -> list[Finding]:
    frees = {node: each.shared_memory for node, each in facts.items() if each.shared_memory is not None}
    if not frees:
        return []
    node = min(frees, key=lambda node: frees[node])
    free = frees[node]
    said = f"{free / 1e9:.2f} GB free in /dev/shm of {node}, which has least"
    if free < SMALL_SHARED_MEMORY:
        fix = "Ray keeps its objects there: give containers more (docker --shm-size, or an emptyDir of medium Memory)"
        return [Finding("shared memory", "warning", said, fix)]
    return [Finding("shared memory", "ok", said)]


def _cache(facts: Mapping[str, NodeFacts], cache_gb: float) -> list[Finding]:
    frees = {node: each.cache_free for node, each in facts.items() if each.cache_free is not None}
    if not frees:
        return []
    node = min(frees, key=lambda node: frees[node])
    said = f"{frees[node] / 1e9:.0f} GB free for data.cache on {node}, which has least; data.cache_gb is {cache_gb:g}"
    if frees[node] < cache_gb * 1e9:
        return [
            Finding("cache", "warning", said, "make room, set data.cache to another disk, or data.cache_gb to less")
        ]
    return [Finding("cache", "ok", said)]
