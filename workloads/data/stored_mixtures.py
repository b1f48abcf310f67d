"""Mixtures of stored views: a store whose rows are what teachers said of mixtures, heard again by a student.

Whether a clip is mixed in a view, with what weight and with which clip of the store follows from (view_seed, clip_id,
view) and the store's list of clips. The partner is heard in the view of the same number. A mixture is of two waveforms
that are cut, rolled and amplified already; the masks are those of the clip itself.

Axes: B clips of a shard, T samples. What has rows for clips and their partners has the clips' first: 2B.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from workloads.config.recipe import Augment
from workloads.data.augment import View, draw_partner


def mix_with_partners(x_BT: Tensor, views: Sequence[View]) -> Tensor:
    """The mixtures x_BT of 2B waveforms, clips and then partners; `views` are of the clips, or of both."""
    size = len(x_BT) // 2
    weight_B1 = torch.tensor([[view.mix_weight] for view in views[:size]], device=x_BT.device)
    return torch.lerp(x_BT[size:], x_BT[:size], weight_B1)


class StoredMixtures:
    """Which training clips are mixed with which others in the views of a store, 8 bytes a clip.

    A view in which a clip is mixed with a clip that does not train is skipped: a test clip must not be heard.
    """

    def __init__(self, augment: Augment, count: int, train_ids: Sequence[str], store_ids: Iterable[str]) -> None:
        self._augment, self._count, self._train_ids = augment, count, train_ids
        row_of = {clip_id: row for row, clip_id in enumerate(train_ids)}
        self._row_of_place = np.array([row_of.get(clip_id, -1) for clip_id in store_ids], np.int32)
        self._place_of_row = np.full(len(train_ids), -1, np.int32)
        places = np.flatnonzero(self._row_of_place >= 0)
        self._place_of_row[self._row_of_place[places]] = places

    def partner(self, row: int, view: int) -> int:
        """The row of a training clip's partner in a view: its own where it is not mixed, -1 for one that does not
        train."""
        place, clips = int(self._place_of_row[row]), len(self._row_of_place)
        return int(
            self._row_of_place[draw_partner(self._augment, self._train_ids[row], view, place=place, clips=clips)]
        )

    def heard(self, row: int, number: int) -> tuple[int, int] | None:
        """The view of a clip that its draw `number` hears, and its partner's row; None where it has no such view."""
        for later in range(self._count):
            view = (number + later) % self._count
            if (partner := self.partner(row, view)) >= 0:
                return view, partner
        return None

    def without_views(self) -> list[str]:
        """The training clips that have no view without a clip that does not train."""
        return [clip_id for row, clip_id in enumerate(self._train_ids) if self.heard(row, 0) is None]
