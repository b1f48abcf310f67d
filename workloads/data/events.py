"""When tags sound within clips, and what a view does to it: events of a shard as they are heard.

Does not depend on clips, files or models. Axes: E events, S clips of which a shard is made, partners of stored
mixtures behind the others, B clips of the shard, P steps in time, C tags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.data.augment import View, shift_of_view


@dataclass(frozen=True, slots=True)
class Event:
    """One sound of a clip; onset and offset in seconds from the start of the clip."""

    tag: str
    onset: float
    offset: float


@dataclass(frozen=True, eq=False)
class HeardEvents:
    """The events of a shard's clips in their views, in samples, and how the clips are mixed.

    An event that is rolled over the end of the clip goes on at its beginning.
    """

    clip_E: Tensor  # among S
    tag_E: Tensor
    begin_E: Tensor
    length_E: Tensor
    known_SC: Tensor  # 1 where it is known when the clip has the tag, else 0
    weight_B: Tensor  # of each clip itself in its mixture; 1: not mixed
    partner_B: Tensor  # among S
    samples: int  # of a view

    def targets(self, starts_P: Tensor, ends_P: Tensor) -> tuple[Tensor, Tensor]:
        """y_BPC: 1 where an event of the tag meets the step, mixed as the clips are; and the known share known_BC.

        Steps are given by their samples. Every step that an event meets counts: it lasts from the step of its onset to
        that of its offset (reference/frames.md section 3). Where it is known of one clip of a mixture only, y is that
        clip's and the share its weight.
        """
        clips, tags = self.known_SC.shape
        length_E1, begin_E1 = self.length_E[:, None], self.begin_E[:, None]
        after_EP = (starts_P - begin_E1) % self.samples < length_E1
        before_EP = (begin_E1 - starts_P) % self.samples < ends_P - starts_P
        meets_EP = (after_EP | before_EP) & (ends_P > starts_P)
        count_XP = torch.zeros(clips * tags, len(starts_P), device=meets_EP.device)
        count_XP.index_add_(0, self.clip_E * tags + self.tag_E, meets_EP.float())
        y_SPC = count_XP.clamp(max=1).view(clips, tags, -1).transpose(1, 2)
        size = len(self.weight_B)
        own_BC = self.weight_B[:, None] * self.known_SC[:size]
        partner_BC = (1 - self.weight_B)[:, None] * self.known_SC[self.partner_B]
        known_BC = own_BC + partner_BC
        y_BPC = own_BC[:, None] * y_SPC[:size] + partner_BC[:, None] * y_SPC[self.partner_B]
        return y_BPC / known_BC.clamp(min=torch.finfo(known_BC.dtype).tiny)[:, None], known_BC

    def to(self, device: torch.device | str) -> "HeardEvents":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return replace(self, **moved)


def heard_events(
    events: Sequence[tuple[Event, ...] | None],
    samples: Sequence[int],
    views: Sequence[View],
    *,
    length: int,
    rate: int,
    columns: Mapping[str, int],
    y_SC: NDArray[np.float32],
    weight_B: Tensor,
    partner_B: Tensor,
) -> HeardEvents:
    """The events of clips of these `samples` in views of `length` samples: cut, and rolled.

    `y_SC` are the labels of the clips, NaN where unknown. Nothing is known of a clip without events (None), nor of a
    tag that the clip has and no event of it.
    """
    known_SC = ~np.isnan(y_SC) & np.array([[own is not None] for own in events])
    for clip, own in enumerate(events):
        silent_C = np.ones(y_SC.shape[1], bool)
        silent_C[[columns[event.tag] for event in own or ()]] = False
        known_SC[clip] &= ~(silent_C & (y_SC[clip] == 1))
    rows: list[tuple[int, int, int, int]] = []
    for clip, (own, num_samples, view) in enumerate(zip(events, samples, views, strict=True)):
        first, shift = view.crop_start(num_samples, length=length), shift_of_view(view, length=length)
        for event in own or ():
            begin, end = (round(moment * rate) - first for moment in (event.onset, event.offset))
            begin, end = max(0, begin), min(length, end)
            if end > begin:
                rows.append((clip, columns[event.tag], (begin + shift) % length, end - begin))
    clip_E, tag_E, begin_E, length_E = torch.tensor(rows, dtype=torch.long).view(-1, 4).unbind(1)
    return HeardEvents(
        clip_E=clip_E,
        tag_E=tag_E,
        begin_E=begin_E,
        length_E=length_E,
        known_SC=torch.from_numpy(known_SC).float(),
        weight_B=weight_B,
        partner_B=partner_B,
        samples=length,
    )
