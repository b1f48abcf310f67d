"""Hours, bottleneck and price on a cluster: exact numbers of the formulas, and their limits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.spec_nodes import Workers
from cluster.spec_speed import Speed, StorageSpeed
from orchestrator.planning.cost import Clips, plan_cost
from orchestrator.planning.fetching import Source
from orchestrator.planning.scale import TERMS, Cluster, ScaleModel, largest_divisor
from orchestrator.planning.stragglers import straggler_factors
from workloads.config.recipe import Recipe
from workloads.distill.schedule import plan_phases
from workloads.models.size import Size

SIZES = {"cnn": Size(100, 1000, 440, 804), "vit": Size(10, 50_000, 40, 84)}  # the cnn has 40 bytes of statistics
CLIPS = Clips(train=100, tags=10, val=20, test=30)
# one second of 16 kHz; a store that is not asked
SOURCE = Source(clips=150, num_bytes=0, cache_bytes=1e9)
NO_TIME = Speed(
    tflops=1e-9,  # 1000 FLOP/s
    optimizer_ms=0,
    spread=0,
    load_ms=0,
    decode_ms=0,
    disk_mb_s=1e30,
    network_gbps=1e30,
    local_gbps=1e30,
    latency_us=0,
    start_s=0,
)
SETTINGS = ("schedule.teacher_steps=3", "schedule.steps=5", "train.shards=4", "train.eval_every=4")
CLIP_BYTES = 128 + 2 * 16_000


@pytest.fixture
def model_of(tiny: Callable[..., Recipe]) -> Callable[..., ScaleModel]:
    """The model of `one-way` (three steps of the CNN, five in which it teaches the Transformer) on nodes like these."""

    def make(*settings: str, speed: Speed = NO_TIME, source: Source = SOURCE, **nodes: Any) -> ScaleModel:
        recipe = tiny("one-way", *SETTINGS, *settings)
        phases = plan_phases(recipe)
        group = Workers(cpus=2, memory_gb=8, min=0, max=8, speed=speed, price_per_hour=nodes.pop("price", 0.0))
        storage = StorageSpeed(gbps=1e30, request_ms=0, requests_per_second=1e30)
        place = {"group": "cpu", "per_node": 2, "storage": storage, "tflops": speed.tflops} | nodes
        cost = plan_cost(recipe, phases, CLIPS, SIZES)
        return ScaleModel(recipe, phases, SIZES, cost, Cluster(nodes=group, **place), source)

    return make


def test_without_other_terms_compute_and_teachers_are_left_and_divide_among_the_workers(model_of: Any) -> None:
    rows = model_of().rows((1, 2, 4))
    batch, rate = 32, 1000
    learn = 6 * batch * (3 * 1000 + 5 * 50_000)
    teach = 2 * batch * 5 * 1000
    score = 2 * 1000 * (20 + 50) + 2 * 50_000 * (20 + 20 + 50)  # validated at each phase's end and after 4 and 8 steps
    for row in rows:
        assert row.seconds == pytest.approx(
            dict.fromkeys(TERMS, 0.0)
            | {"compute": (learn + score) / rate / row.workers, "teachers": teach / rate / row.workers},
            abs=1e-9,
        )
        assert row.hours == pytest.approx((learn + score + teach) / rate / row.workers / 3600)
        assert row.seconds_per_step == pytest.approx((learn + teach) / rate / row.workers / 8)
        assert row.speedup == pytest.approx(row.workers)
        assert row.bottleneck == "compute"
        assert (row.note, row.nodes) == ("", 1 if row.workers < 4 else 2)


def test_one_worker_exchanges_nothing_and_waits_for_nobody(model_of: Any) -> None:
    slow = replace(NO_TIME, spread=0.5, network_gbps=1e-9, local_gbps=1e-9, latency_us=1e6)
    (row,) = model_of(speed=slow).rows((1,))
    assert row.seconds["exchange"] == 0
    assert row.seconds["stragglers"] == 0


def test_the_exchange_is_a_ring_over_the_slowest_link(model_of: Any) -> None:
    speed = replace(NO_TIME, local_gbps=8e-6, network_gbps=8e-7, latency_us=1000)  # 1000 and 100 bytes a second
    two, four = model_of(speed=speed).rows((2, 4))
    # the cnn: 400 bytes of gradients and 40 of statistics, in 1 + 1 + 2 calls; the vit: 40 bytes in 1 + 0 + 2
    assert two.seconds["exchange"] == pytest.approx(
        3 * (2 * 1 * (4 * 0.001 + 440 / 2 / 1000)) + 5 * (2 * 1 * (3 * 0.001 + 40 / 2 / 1000))
    )
    assert four.seconds["exchange"] == pytest.approx(
        3 * (2 * 3 * (4 * 0.001 + 440 / 4 / 100)) + 5 * (2 * 3 * (3 * 0.001 + 40 / 4 / 100))
    )


def test_what_does_not_depend_on_the_clips_is_spent_by_every_worker(model_of: Any) -> None:
    one, four = model_of(speed=replace(NO_TIME, optimizer_ms=250, start_s=60)).rows((1, 4))
    assert one.seconds["optimizer"] == four.seconds["optimizer"] == pytest.approx(8 * 0.25)
    assert one.seconds["start"] == four.seconds["start"] == 60


def test_reading_is_added_where_the_training_thread_reads(model_of: Any) -> None:
    one, two = model_of(speed=replace(NO_TIME, load_ms=10)).rows((1, 2))
    clips_read = 8 * 32 + 20 + 50 + 3 * 20 - 20 + 50  # of 8 batches; cnn once and at the end; vit twice and at the end
    clips_read += 3  # those that the report plays
    assert model_of().cost.clips_read == clips_read
    assert one.seconds["reading"] == pytest.approx(clips_read * 0.01)
    assert two.seconds["reading"] == pytest.approx(clips_read * 0.01 / 2)
    assert one.hours == pytest.approx(sum(one.seconds.values()) / 3600)


def test_a_disk_is_shared_by_the_workers_of_a_node(model_of: Any) -> None:
    one, two, four = model_of(speed=replace(NO_TIME, disk_mb_s=CLIP_BYTES / 1e6)).rows((1, 2, 4))  # a clip a second
    assert one.seconds["reading"] == two.seconds["reading"] == pytest.approx(2 * four.seconds["reading"])


def test_with_loader_processes_the_longer_of_reading_and_computing_counts(model_of: Any) -> None:
    # a step of one worker computes 192 to 9600 + 64 seconds; reading takes 32 x load_ms / 2
    fast, slow = (
        model_of("train.loaders=2", speed=replace(NO_TIME, load_ms=ms)).rows((1,))[0] for ms in (1000, 1_000_000)
    )
    computing, scored_clips = model_of().rows((1,))[0].seconds["compute"], model_of().cost.clips_read - 8 * 32
    assert fast.seconds["compute"] == pytest.approx(computing)
    assert fast.seconds["reading"] == pytest.approx(scored_clips * 0.5)  # scoring reads in the training thread
    assert slow.seconds["reading"] == pytest.approx((8 * 32 + scored_clips) * 500)
    assert slow.seconds["teachers"] == 0
    assert slow.bottleneck == "reading"


def test_encoded_clips_of_a_pack_are_decoded_when_they_are_read(model_of: Any) -> None:
    pack = Source(clips=150, num_bytes=1000, archives=2, cache_bytes=1e9)
    decoded = replace(pack, encoded=False)
    speed = replace(NO_TIME, load_ms=1, decode_ms=9)
    one, other = (model_of(speed=speed, source=source).rows((1,))[0].seconds["reading"] for source in (pack, decoded))
    assert one == pytest.approx(10 * other)


def test_stragglers_multiply_the_work_and_not_the_exchange(model_of: Any) -> None:
    plain, spread = (model_of(speed=replace(NO_TIME, spread=value)).rows((4,))[0] for value in (0.0, 0.2))
    work = 8 * plain.seconds_per_step
    assert spread.seconds["stragglers"] == pytest.approx((straggler_factors((4,), spread=0.2)[4] - 1) * work)
    assert spread.seconds["exchange"] == plain.seconds["exchange"]


def test_checkpoints_wait_for_the_disk_and_for_an_upload_that_is_not_over(model_of: Any) -> None:
    """Saved after 3 and 8 steps; of 440 + 804, then of these and 40 + 84 more bytes."""
    speed = replace(NO_TIME, tflops=1e30, disk_mb_s=0.001, network_gbps=8e-7, start_s=0)
    saved = 1244 + 1368
    (row,) = model_of("models.cnn.average.kind=none", "models.vit.average.kind=none", speed=speed).rows((1,))
    reading = (8 * 32) * CLIP_BYTES / 1000 / 8  # seconds a step: from the same slow disk
    assert row.seconds_per_step == pytest.approx(reading)
    assert row.seconds["checkpoints"] == pytest.approx(saved / 1000 + 1368 / 100)  # 100 steps lie between two uploads
    quick = replace(speed, disk_mb_s=1e30)
    (row,) = model_of("models.cnn.average.kind=none", "models.vit.average.kind=none", speed=quick).rows((1,))
    assert row.seconds["checkpoints"] == pytest.approx(saved / 100 + 1368 / 100)  # each is waited for, the last twice


def test_the_price_is_of_whole_nodes_and_the_head(model_of: Any) -> None:
    two, four = model_of(price=3.0, head_price=0.5).rows((2, 4))
    assert two.price == pytest.approx(two.hours * (1 * 3.0 + 0.5))
    assert four.price == pytest.approx(four.hours * (2 * 3.0 + 0.5))
    assert model_of(head_price=0.5).rows((2,))[0].price is None


def test_numbers_that_cannot_share_the_shards_say_so(model_of: Any) -> None:
    three, eight = model_of().rows((3, 8))
    assert (three.hours, three.note) == (None, "does not divide train.shards = 4; 2 does")
    assert (eight.hours, eight.note) == (None, "does not divide train.shards = 4; 4 does")
    assert [largest_divisor(1000, most) for most in (1, 16, 64, 512, 5000)] == [1, 10, 50, 500, 1000]


def test_more_nodes_than_the_group_has_are_named_and_reckoned_with(model_of: Any) -> None:
    (row,) = model_of("train.shards=32", "train.shard_size=1", "augment.mixup=0").rows((32,))
    assert row.nodes == 16
    assert row.note == "more nodes than workers.cpu.max = 8"
    assert row.hours is not None


def test_workers_that_must_share_a_node_do_not_take_two(model_of: Any) -> None:
    two, four = model_of("resources.placement=STRICT_PACK").rows((2, 4))
    assert two.hours is not None
    assert (four.hours, four.note) == (None, "STRICT_PACK: a node holds 2")
