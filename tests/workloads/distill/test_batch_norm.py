"""Batch norm's bookkeeping: none for a single shard, and means over shards that do not depend on it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workloads.distill.batch_norm import ShardMeanStats, running_statistics
from workloads.train_step import train_step


class Operations(TorchDispatchMode):
    """Collects the names of all operations inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("shards", "can_undo", "costs"), [(1, False, False), (1, True, True), (2, False, True)])
def test_a_single_shard_costs_nothing_unless_it_may_be_undone(tiny, start, shards, can_undo, costs):
    run = start(tiny("mutual"))
    tagger = run.pool.train_state("cnn").tagger
    assert running_statistics(tagger)
    with Operations() as operations:
        stats = ShardMeanStats([tagger], shards=shards, workers=run.placement.workers, can_undo=can_undo)
        stats.after_shard()
        stats.finish()
    assert bool(operations.names) == costs


def test_a_step_that_may_be_undone_is_the_same_step(tiny, start):
    tensors = []
    for policy in ("stop", "skip"):
        run = start(tiny("mutual", f"train.bad_numbers={policy}"))
        sources = run.pool.enter_phase(run.phases[0])
        for step in range(2):
            run.step = step
            train_step(run, run.phases[0], sources)
        tensors.append(run.pool.states["cnn"].tensors())
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_the_statistics_of_two_shards_are_the_mean_of_both_and_count_as_one_step(tiny, start):
    run = start(tiny("mutual", "train.shards=2"))
    tagger = run.pool.train_state("cnn").tagger
    before = {name: tensor.clone() for name, tensor in running_statistics(tagger).items()}
    stats = ShardMeanStats([tagger], shards=2, workers=run.placement.workers, can_undo=False)
    for value in (1.0, 4.0):
        assert all(torch.equal(stat, before[name]) for name, stat in running_statistics(tagger).items())
        for stat in running_statistics(tagger).values():
            stat.fill_(value)
        stats.after_shard()
    stats.finish()
    assert all(bool((stat == 2.5).all()) for stat in running_statistics(tagger).values())
    counters = [tensor for name, tensor in tagger.state_dict().items() if name.endswith("num_batches_tracked")]
    assert {int(counter) for counter in counters} == {1}
