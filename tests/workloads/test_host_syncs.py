"""A training step reads values of tensors once: on a GPU every reading waits until all work before it is done."""

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from workloads.train_step import train_step

# Operations whose result, or the shape of it, depends on values
DEPENDENT = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique", "aten.equal")
EVERYTHING = [
    "schedule={kind='mutual', burn_in=2, steps=4, exchange=2}",
    "train.shards=2",
    "train.label_smoothing=0.1",
    "augment={roll=0.1, gain_db=3.0, mixup=1.0, mask_time=0.1, mask_mel=0.1}",
    "models.cnn.average={kind='ema'}",
    "models.vit.front_end={kind='kaldi128'}",
    "edges.0={teacher='cnn', student='vit', source='ema', gate='better_on_clip', shuffled=true, tau_mode='both'}",
    "edges.1={teacher='vit', student='cnn', source='snapshot', view='clean', gate='switokd'}",
]


class Readings(TorchDispatchMode):
    """Collects the operations that read values: by their names, and `tolist` and `cpu`, which no name shows."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._functions = _Functions(self.names)

    def __enter__(self):
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        return self._functions.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if str(func).startswith("aten.index") and isinstance(args[1], list | tuple) else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if by_mask or str(func).startswith(DEPENDENT):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self._names = names

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.tolist, Tensor.cpu, Tensor.numpy):
            self._names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_step_reads_values_once(tiny, start, policy):
    run = start(tiny("mutual", *EVERYTHING, f"train.bad_numbers={policy}"))
    phase = run.phases[-1]
    assert len(phase.edges) == 2
    sources = run.pool.enter_phase(phase)
    for step in (phase.start, phase.start + 1):
        run.step = step
        shards = [run.batches.shard(step, index, with_clean_view=True) for index in range(2)]
        run.batches.shard = lambda step, index, *, with_clean_view, device, shards=shards: shards[index]
        with Readings() as readings:
            train_step(run, phase, sources)
        del run.batches.shard
        assert readings.names == ["tolist"], "the losses and gradient norms that must be finite"


def test_readings_are_seen():
    tensor = torch.ones(2)
    with Readings() as readings:
        bool(tensor[0])
        tensor.tolist()
        tensor[tensor > 0]
    assert readings.names == ["aten._local_scalar_dense.default", "tolist", "aten.index.Tensor"]
