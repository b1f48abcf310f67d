"""Bytes and calls of a step's exchange, against the ring itself and against real models."""

import pytest

from cluster.spec_speed import Speed
from orchestrator.planning.cost import model_sizes
from orchestrator.planning.exchange import Traffic, ring_bandwidth, step_traffic
from workloads.distill.batch_norm import running_statistics
from workloads.distill.schedule import plan_phases
from workloads.models.size import Size


def test_a_single_worker_sends_nothing() -> None:
    assert Traffic(10**9, 100).seconds(1, bandwidth=1.0, latency=1.0) == 0


def test_seconds_are_those_of_the_rounds_of_a_ring() -> None:
    """Every worker's chunk goes around the ring, summed on the way, and around again: chunks are counted as they go."""
    workers, num_bytes, bandwidth, latency = 8, 800, 50.0, 0.25
    chunks = [num_bytes / workers] * workers
    seconds = 0.0
    for _ in ("sum", "share"):
        for _ in range(workers - 1):
            seconds += latency + max(chunk / bandwidth for chunk in chunks)
    assert Traffic(num_bytes, 1).seconds(workers, bandwidth=bandwidth, latency=latency) == pytest.approx(seconds)
    assert seconds == pytest.approx(2 * 7 / 8 * num_bytes / bandwidth + 2 * 7 * latency)


@pytest.mark.parametrize(
    ("params", "calls"),
    [(1, 1), (2**18, 1), (2**18 + 1, 2), (2**18 + 25 * 2**18, 2), (2**18 + 25 * 2**18 + 1, 3)],
)
def test_gradients_are_exchanged_in_buckets(tiny, params: int, calls: int) -> None:
    recipe = tiny("one-way", "schedule.teacher_steps=1", "schedule.steps=1", "train.shards=2")
    sizes = {"cnn": Size(params, 1, 4 * params, 0), "vit": Size(1, 1, 4, 0)}
    assert step_traffic(recipe, plan_phases(recipe)[0], sizes) == Traffic(4 * params, calls + 2)


def test_all_students_of_a_phase_are_counted_and_no_teacher(tiny) -> None:
    sizes = {"cnn": Size(100, 1, 440, 0), "vit": Size(10, 1, 40, 0)}
    mutual = tiny("mutual", "schedule.burn_in=0", "schedule.steps=1", "train.shards=2")
    assert step_traffic(mutual, plan_phases(mutual)[0], sizes) == Traffic(480, 5)
    one_way = tiny("one-way", "schedule.teacher_steps=1", "schedule.steps=1")
    assert step_traffic(one_way, plan_phases(one_way)[1], sizes) == Traffic(40, 3)
    assert step_traffic(one_way, plan_phases(one_way)[0], sizes) == Traffic(400, 3)  # one shard has its statistics


def test_buffers_are_nearly_all_batch_norm_s_statistics(tiny, start) -> None:
    recipe = tiny("mutual", "schedule.burn_in=0", "schedule.steps=1", "train.shards=2")
    taggers = [start(recipe).pool.train_state(name).tagger for name in recipe.models]
    exchanged = sum(
        sum(buffer.nbytes for buffer in running_statistics(tagger).values())
        + sum(parameter.nbytes for parameter in tagger.parameters())
        for tagger in taggers
    )
    traffic = step_traffic(recipe, plan_phases(recipe)[0], model_sizes(recipe, tags=10))
    assert traffic.num_bytes == pytest.approx(exchanged, rel=0.01)


def test_a_ring_s_links_are_those_within_the_node_until_there_are_two() -> None:
    speed = Speed(local_gbps=80, network_gbps=8)
    assert ring_bandwidth(speed, nodes=1) == 10e9
    assert ring_bandwidth(speed, nodes=2) == 1e9
    assert ring_bandwidth(Speed(local_gbps=4, network_gbps=8), nodes=2) == 0.5e9
