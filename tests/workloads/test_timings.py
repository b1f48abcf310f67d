"""How long steps and their parts take: what the loop measures, records and hands to its session."""

import pytest

from tests.commands import event_records
from workloads.data.loading import InThread
from workloads.distill.sources import FrozenTeacher
from workloads.evaluate.step_metrics import mean_times
from workloads.runtime.session import StepTimes
from workloads.train import loop

LOAD_S, TEACHER_S = 3.0, 5.0


class Clock:
    """A clock that only moves when it is told to; stands for the module `time`."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The loop's clock: loading a shard takes 3 s, asking a frozen teacher 5 s, everything else nothing."""
    clock = Clock()

    def taking(method, seconds):
        def call(self, *arguments):
            clock.now += seconds
            return method(self, *arguments)

        return call

    for module in ("train", "train_step", "data.batches"):
        monkeypatch.setattr(f"workloads.{module}.time", clock)
    monkeypatch.setattr(InThread, "load", taking(InThread.load, LOAD_S))
    monkeypatch.setattr(FrozenTeacher, "outputs", taking(FrozenTeacher.outputs, TEACHER_S))
    return clock


def test_the_session_gets_each_step_and_records_are_means_since_the_last(tiny, start, clock):
    """Three steps without a teacher, then six with one; two shards a step, a record after step 1 and every second."""
    alternate = ("schedule.burn_in=3", "schedule.period=3", "schedule.turns=2")
    run = start(tiny("demo", *alternate, "train.shards=2", "train.log_every=2", "train.eval_every=1000"))
    taken = []
    run.session.on_step = lambda step, times: taken.append((step, times))
    loop(run)
    clips = 2 * run.recipe.train.shard_size
    alone = StepTimes(step=2 * LOAD_S, data_wait=2 * LOAD_S, teacher=0.0, clips=clips)
    taught = StepTimes(step=2 * LOAD_S + 2 * TEACHER_S, data_wait=2 * LOAD_S, teacher=2 * TEACHER_S, clips=clips)
    assert taken == list(enumerate([alone] * 3 + [taught] * 6, start=1))
    recorded = {record["step"]: record["values"] for record in event_records(run) if record["kind"] == "timings"}
    assert recorded == {
        1: mean_times([alone], clips),
        2: mean_times([alone], clips),
        4: mean_times([alone, taught], clips),
        6: mean_times([taught, taught], clips),
        8: mean_times([taught, taught], clips),
    }
    assert recorded[4] == {
        "timing/step_seconds": 11.0,
        "timing/data_wait_seconds": 6.0,
        "timing/teacher_seconds": 5.0,
        "timing/clips_per_second": clips / 11.0,
    }


def test_exchanges_are_the_newest_that_were_measured_and_clips_those_of_all_workers():
    first = StepTimes(step=1.0, data_wait=0.25, teacher=0.5, clips=8, exchange={"cnn": 0.125})
    second = StepTimes(step=3.0, data_wait=0.75, teacher=0.0, clips=8, exchange={"cnn": 0.25, "vit": 0.5})
    assert mean_times([first, second], 32) == {
        "timing/step_seconds": 2.0,
        "timing/data_wait_seconds": 0.5,
        "timing/teacher_seconds": 0.25,
        "timing/exchange_seconds/cnn": 0.25,
        "timing/exchange_seconds/vit": 0.5,
        "timing/clips_per_second": 16.0,
    }
