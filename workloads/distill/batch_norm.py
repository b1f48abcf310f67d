"""Batch norm's running statistics: which buffers they are, and their means over the shards of a step.

Means, so that they do not depend on the number of workers.

Does not depend on the loop or on what is learned.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from workloads.models.tagger import Tagger
from workloads.runtime.placement import WorkerGroup


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Batch norm's running means and variances by their names in the state dict.

    These are measured, as weights are; every other buffer is a setting (a grid, a temperature) or a counter, of which a
    mean has no meaning.
    """
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm)
        for name, buffer in (("running_mean", module.running_mean), ("running_var", module.running_var))
        if buffer is not None
    }


class ShardMeanStats:
    """The running statistics of the students during one step.

    Every shard starts from the statistics at the beginning of the step; at its end they are set to the mean over all
    shards of all `workers` that hold these taggers. Every one of them creates one per step, calls `after_shard` once
    per shard of its own, then `finish` once (a collective call).

    With a single shard in the whole batch its statistics are the mean already: nothing is read or copied, unless
    `can_undo` asks for the buffers from before the step.
    """

    def __init__(self, taggers: list[Tagger], *, shards: int, workers: WorkerGroup, can_undo: bool) -> None:
        self._single_shard = shards == 1
        self._can_undo, self._shards, self._workers = can_undo, shards, workers
        self._stats, self._counters = _saved_buffers([] if self._single_shard and not can_undo else taggers)
        self._start = [buffer.clone() for buffer in (*self._stats, *self._counters)]
        self._sums = [] if self._single_shard else [torch.zeros_like(stat) for stat in self._stats]

    def after_shard(self) -> None:
        """Add the statistics that this shard has left to the sums, and reset them for the next shard."""
        if self._single_shard or not self._stats:
            return
        torch._foreach_add_(self._sums, self._stats)
        torch._foreach_copy_([*self._stats, *self._counters], self._start)

    def finish(self, *, undo: Sequence[Tagger] = ()) -> None:
        """Set the statistics to their means; the step counters rise by one, whatever the number of shards.

        Taggers in `undo`, whose numbers were not finite, get back the buffers from before the step (with `can_undo`).
        """
        assert self._can_undo or not undo
        if not self._single_shard and self._stats:
            self._set_means()
        undone = {buffer.data_ptr() for buffers in _saved_buffers(undo) for buffer in buffers}
        if not undone:
            return
        for buffer, start in zip((*self._stats, *self._counters), self._start, strict=True):
            if buffer.data_ptr() in undone:
                buffer.copy_(start)

    def _set_means(self) -> None:
        flat = torch.cat([total.reshape(-1) for total in self._sums])
        self._workers.add_up(flat)
        flat /= self._shards
        means = flat.split([stat.numel() for stat in self._stats])
        torch._foreach_copy_(self._stats, [mean.view_as(stat) for stat, mean in zip(self._stats, means, strict=True)])
        torch._foreach_add_(self._counters, 1)


def _saved_buffers(taggers: Sequence[Tagger]) -> tuple[list[Tensor], list[Tensor]]:
    """Batch norm's running statistics and its integer step counters."""
    stats: list[Tensor] = []
    counters: list[Tensor] = []
    for tagger in taggers:
        stats += running_statistics(tagger).values()
        counters += [
            module.num_batches_tracked
            for module in tagger.modules()
            if isinstance(module, _BatchNorm) and module.num_batches_tracked is not None
        ]
    return stats, counters
