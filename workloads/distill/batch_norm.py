"""Batch norm across shards: what is learned depends on the shards, not on how many workers or turns they took."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from workloads.models.tagger import Tagger
from workloads.runtime.session import Session


class ShardMeanStats:
    """Each shard starts from the step's first buffers, which then become the mean over all shards of all workers."""

    def __init__(self, taggers: list[Tagger], *, shards: int, session: Session) -> None:
        self._alone = shards == 1  # one shard in all: its buffers are the mean already
        self._shards, self._session = shards, session
        self._buffers, self._counters = _saved_buffers(taggers)
        self._start = [buffer.clone() for buffer in (*self._buffers, *self._counters)]
        self._sums = [] if self._alone else [torch.zeros_like(buffer) for buffer in self._buffers]

    def after_shard(self) -> None:
        """Keep what this shard did to the buffers and put them back."""
        if self._alone:
            return
        for buffer, total in zip(self._buffers, self._sums, strict=True):
            total += buffer
        for buffer, start in zip((*self._buffers, *self._counters), self._start, strict=True):
            buffer.copy_(start)

    def finish(self, *, undo: Sequence[Tagger] = ()) -> None:
        """Set the buffers to their mean; a step counts once, however many shards it had.

        Those of the taggers in `undo`, whose numbers went bad, are put back to what they were before the step.
        """
        if not self._alone and self._buffers:
            self._take_mean()
        bad = {buffer.data_ptr() for buffers in _saved_buffers(undo) for buffer in buffers}
        for buffer, start in zip((*self._buffers, *self._counters), self._start, strict=True):
            if buffer.data_ptr() in bad:
                buffer.copy_(start)

    def _take_mean(self) -> None:
        flat = torch.cat([total.reshape(-1) for total in self._sums])
        if self._session.world_size > 1:
            dist.all_reduce(flat)
        flat /= self._shards
        sizes = [buffer.numel() for buffer in self._buffers]
        for buffer, mean in zip(self._buffers, flat.split(sizes), strict=True):
            buffer.copy_(mean.view_as(buffer))
        for counter in self._counters:
            counter += 1


def _saved_buffers(taggers: Sequence[Tagger]) -> tuple[list[Tensor], list[Tensor]]:
    """Batch norm's running statistics and its integer step counters; filterbanks are not saved with a model."""
    running: list[Tensor] = []
    counters: list[Tensor] = []
    for tagger in taggers:
        parameters = dict(tagger.named_parameters())
        for name, tensor in tagger.state_dict(keep_vars=True).items():
            if name not in parameters:
                (running if tensor.is_floating_point() else counters).append(tensor)
    return running, counters
