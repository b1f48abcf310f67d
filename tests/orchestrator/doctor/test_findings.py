"""What the doctor says of nodes that are as they should be, and of each that is not."""

from dataclasses import replace

import pytest

from orchestrator.doctor.findings import Finding, judge, judge_clocks, judge_links
from orchestrator.doctor.network import Link, pairs_of
from orchestrator.doctor.node_facts import NodeFacts

GOOD = NodeFacts(
    versions={"python": "3.11.7", "antiphon": "0.1.0"},
    storage_ms={"write": 5.0, "read": 3.0},
    storage_error="",
    has_credentials=True,
    data_error="",
    tracking_error="",
    gpus=["H200"],
    shared_memory=8 * 2**30,
    cache_free=100_000_000_000,
)


def one(found: list[Finding], check: str) -> Finding:
    return next(finding for finding in found if finding.check == check)


def test_nodes_that_are_alike_and_able_are_fine() -> None:
    found = judge({"a": GOOD, "b": GOOD}, cache_gb=20)
    assert {finding.level for finding in found} == {"ok"}
    assert {finding.fix for finding in found} == {""}


@pytest.mark.parametrize(
    ("change", "check", "level", "said"),
    [
        (
            {"versions": {"python": "3.12.1", "antiphon": "0.1.0"}},
            "versions",
            "problem",
            "python 3.11.7 on a; python 3.12.1 on b",
        ),
        ({"has_credentials": False}, "credentials", "problem", "no credentials for S3 on b"),
        ({"storage_error": "write: forbidden"}, "storage", "problem", "b: write: forbidden"),
        ({"storage_ms": {"write": 900.0}}, "storage", "warning", "the slowest step took 900 ms (write, b)"),
        ({"data_error": "it is not there"}, "data", "problem", "b: data.root: it is not there"),
        ({"tracking_error": "refused"}, "tracking", "problem", "b: refused"),
        ({"shared_memory": 64_000_000}, "shared memory", "warning", "0.06 GB free in /dev/shm of b"),
        ({"cache_free": 10_000_000_000}, "cache", "warning", "10 GB free for data.cache on b"),
    ],
)
def test_the_node_that_is_not_is_named_with_what_to_do(change: dict, check: str, level: str, said: str) -> None:
    finding = one(judge({"a": GOOD, "b": replace(GOOD, **change)}, cache_gb=20), check)
    assert (finding.level, said in finding.said, finding.fix != "") == (level, True, True)


def test_shared_memory_is_judged_where_a_node_has_any() -> None:
    without = replace(GOOD, shared_memory=None)
    assert (
        one(judge({"a": without, "b": replace(GOOD, shared_memory=1)}, cache_gb=0), "shared memory").level == "warning"
    )
    assert "shared memory" not in {finding.check for finding in judge({"a": without}, cache_gb=0)}


def test_a_cluster_needs_a_gpu_on_some_node_only() -> None:
    without = replace(GOOD, gpus=[])
    assert one(judge({"a": GOOD, "b": without}, cache_gb=0), "gpus") == Finding("gpus", "ok", "a: H200; b: none")
    assert one(judge({"a": without}, cache_gb=0), "gpus").level == "problem"


def test_clocks_may_be_apart_by_a_little() -> None:
    assert judge_clocks({"a": 0.2, "b": -1.0}) == Finding("clocks", "ok", "within 1.0 s of this one")
    assert judge_clocks({"a": 0.2, "b": -61.0}).said == "the clock of b is -61.0 s from this one's"


def test_pairs_that_cannot_exchange_and_slow_ones_are_named() -> None:
    links = [Link("a", "b", 900.0), Link("a", "c", error="timed out"), Link("b", "c", 20.0)]
    (broken,) = judge_links(links)
    assert (broken.level, broken.said) == ("problem", "1 of 3 pairs cannot exchange: a and c: timed out")
    (slow,) = judge_links([links[0], links[2]])
    assert (slow.level, slow.said) == ("warning", "2 pairs exchange by gloo, the slowest 20 MB/s (b and c)")
    assert judge_links([]) == []


def test_of_many_nodes_a_ring_is_tried() -> None:
    assert pairs_of(3) == [(0, 1), (0, 2), (1, 2)]
    assert len(pairs_of(16)) == 120
    assert pairs_of(17)[-2:] == [(15, 16), (16, 0)]
