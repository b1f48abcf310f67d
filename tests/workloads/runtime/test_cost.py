"""What training costs: of one worker, and of several together."""

import pytest

from workloads.runtime import cost


def test_a_meter_gives_what_was_spent_since_it_was_asked_last(monkeypatch):
    clocks = {"perf_counter": iter([10.0, 12.5, 20.0]), "process_time": iter([1.0, 1.75, 5.0])}
    for name, readings in clocks.items():
        monkeypatch.setattr(cost.time, name, readings.__next__)
    meter = cost.CostMeter(*(next(readings) for readings in clocks.values()))
    assert meter.take() == (2.5, 0.75)
    assert meter.take() == (7.5, 3.25)


@pytest.mark.parametrize(("device", "gpu_seconds"), [("cpu", 0.0), ("cuda", 5.0)])
def test_several_workers_take_the_time_of_the_slowest_and_the_work_of_all(device, gpu_seconds):
    spent = cost.cost_of_workers([(2.0, 1.5), (3.0, 2.25)], device)
    assert spent == {"seconds": 3.0, "cpu_seconds": 3.75, "gpu_seconds": gpu_seconds}
