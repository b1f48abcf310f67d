"""Batches: which clips form a shard, in which views, mixed how. Does not depend on models.

The content of a shard depends on the recipe, the step and the shard's index only, not on the worker that loads it.

A clip that is drawn again within an epoch (balanced sampling) gets another view: a draw is the clip's row and the
number of its earlier draws in the epoch.

Axes: B clips of a batch, here of a shard, N clips of a set, T samples, M mel bands, F frames, C tags, 4 masks (time
start, time width, mel start, mel width).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.config.recipe import Recipe
from workloads.data.augment import View, apply_view, clean_view, draw_view, mask_mel, sound_mask, sound_of_view
from workloads.data.cache import ClipCache
from workloads.data.clips import Clip, Dataset, require_full_batch
from workloads.runtime.rng import keyed_generator


class MelFrontEnd(Protocol):
    """Computes log-mels of waveforms; front ends of the same kind give the same numbers."""

    kind: str
    mask_value: float  # of masked cells
    hears_padding: bool

    def __call__(self, x_BT: Tensor, sound_BT: Tensor | None) -> Tensor: ...


class Draw(NamedTuple):
    """One draw of a clip in an epoch."""

    row: int  # of the clip among the training clips
    occurrence: int  # number of earlier draws of the clip in the epoch


@dataclass(eq=False)
class Shard:
    """Clips of one forward pass, each in one view; `partner_x_BT` is set only where mixup is applied to log-mels.

    `sound_B2` is where each clip's sound begins and how long it is (`sound_of_view`), the rest is padding; None: no
    clip is padded. With mixup `partner_sound_B2` is the same of the clips that they are mixed with.
    """

    clip_ids: tuple[str, ...]
    view: int
    x_BT: Tensor
    y_BC: Tensor  # labels; NaN where unknown
    known_BC: Tensor  # the known share of each label: 0 or 1, between them for a mixture of a known and an unknown one
    masks_B4: Tensor
    sound_B2: Tensor | None = None
    partner_x_BT: Tensor | None = None
    partner_sound_B2: Tensor | None = None
    mix_weight_B: Tensor | None = None
    load_clean: Callable[[], "Shard"] | None = None  # None: this shard is its own clean view
    _mels: dict[str, Tensor] = field(default_factory=dict)  # by kind of front end
    _clean: "Shard | None" = None

    def mel(self, front_end: MelFrontEnd) -> Tensor:
        """The log-mels mel_BMF, mixed and masked; computed once for all models with the same kind of front end."""
        if front_end.kind not in self._mels:
            with torch.no_grad():
                mel_BMF = front_end(self.x_BT, self.sound(front_end))
                if self.partner_x_BT is not None and self.mix_weight_B is not None:
                    partner_BMF = front_end(self.partner_x_BT, self._mask(front_end, self.partner_sound_B2))
                    mel_BMF = torch.lerp(partner_BMF, mel_BMF, self.mix_weight_B[:, None, None])
                self._mels[front_end.kind] = mask_mel(mel_BMF, self.masks_B4, value=front_end.mask_value)
        return self._mels[front_end.kind]

    def sound(self, front_end: MelFrontEnd) -> Tensor | None:
        """sound_BT of `x_BT` for a front end that does not hear padding, where there is any; else None."""
        sound_BT = self._mask(front_end, self.sound_B2)
        if self.mix_weight_B is None or self.partner_x_BT is not None:
            return sound_BT
        partner_BT = self._mask(front_end, self.partner_sound_B2)  # of two added waveforms the longer one counts
        return None if sound_BT is None or partner_BT is None else sound_BT | partner_BT

    def _mask(self, front_end: MelFrontEnd, sound_B2: Tensor | None) -> Tensor | None:
        if front_end.hears_padding or sound_B2 is None:
            return None
        return sound_mask(sound_B2, self.x_BT.shape[1])

    def clean(self) -> "Shard":
        """The same clips, crops and mixtures without roll, gain and masks; loaded at the first call."""
        if self.load_clean is None:
            return self
        if self._clean is None:
            self._clean = self.load_clean().to(self.x_BT.device)
        return self._clean

    def to(self, device: torch.device | str) -> "Shard":
        """This shard with its tensors on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return replace(self, **moved, _mels={}, _clean=None)


class Batches:
    """The training batches of a run: `train.shards` shards of `train.shard_size` clips per step."""

    def __init__(self, clips: Sequence[Clip], dataset: Dataset, cache: ClipCache, recipe: Recipe) -> None:
        require_full_batch(len(clips), recipe.train)
        assert cache.rate == recipe.rate, "clips are cached at the highest rate that a model of the run needs"
        self.clips = clips
        self.cache = cache
        self.recipe = recipe
        self.length = round(recipe.data.clip_seconds * recipe.rate)
        self.steps_per_epoch = len(clips) // recipe.train.batch_size
        self._y_NC = torch.from_numpy(dataset.targets(clips))
        self._epoch_draws: tuple[int, NDArray[np.int64]] = (-1, np.empty((0, 2), np.int64))  # the last epoch's

    def shard(self, step: int, index: int) -> Shard:
        """Shard `index` of the global batch of `step`; steps count from 0."""
        assert 0 <= index < self.recipe.train.shards, f"shard {index} of {self.recipe.train.shards}"
        epoch, draws = self._batch_draws(step)
        size = self.recipe.train.shard_size
        own = draws[index * size : (index + 1) * size]
        views = {draw: self._draw_view(draw, epoch) for draw in own}
        partners = [
            draw if views[draw].mix_weight == 1 else draws[int(views[draw].partner * len(draws))] for draw in own
        ]
        views |= {draw: self._draw_view(draw, epoch) for draw in partners if draw not in views}
        return self._load(own, partners, views, epoch, clean=False)

    def clip_ids(self, step: int) -> list[str]:
        """The clip_ids of the global batch of `step`."""
        return [self.clips[draw.row].clip_id for draw in self._batch_draws(step)[1]]

    def _batch_draws(self, step: int) -> tuple[int, list[Draw]]:
        """The epoch of a step, and the draws of its batch."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        size = self.recipe.train.batch_size
        draws = self._draws_of_epoch(epoch)[batch * size : (batch + 1) * size]
        return epoch, [Draw(row, occurrence) for row, occurrence in draws.tolist()]

    def _draws_of_epoch(self, epoch: int) -> NDArray[np.int64]:
        """All draws (row, occurrence) of an epoch in order, which depends on train.seed and the epoch."""
        if self._epoch_draws[0] != epoch:
            generator = keyed_generator(self.recipe.train.seed, "order", epoch)
            if self.recipe.data.sampling == "balanced":
                order = generator.choice(len(self.clips), size=len(self.clips), p=self._sampling_probabilities())
            else:
                order = generator.permutation(len(self.clips))
            self._epoch_draws = (epoch, np.stack((order, _count_occurrences(order)), axis=1))
        return self._epoch_draws[1]

    def _sampling_probabilities(self) -> NDArray[np.float64]:
        """Proportional to the sum over a clip's tags of 1 / (clips with that tag): rare tags are drawn more often.

        Clips without any tag, which teach what the tags are not, are drawn as if "no tag" were a tag too.
        """
        y_NC = self._y_NC.double().nan_to_num().numpy()
        y_NC = np.column_stack((y_NC, ~y_NC.any(axis=1)))
        weight_N = (y_NC / y_NC.sum(axis=0).clip(min=1)).sum(axis=1)
        return weight_N / weight_N.sum()

    def _draw_view(self, draw: Draw, epoch: int) -> View:
        return draw_view(self.recipe.augment, self.clips[draw.row].clip_id, epoch, draw.occurrence)

    def _load(
        self, own: list[Draw], partners: list[Draw], views: dict[Draw, View], epoch: int, *, clean: bool
    ) -> Shard:
        """The clips of `own`, mixed with `partners` by the views' weights; `clean` keeps crop and mixup only."""
        if clean:
            views = {draw: View(crop=view.crop, mix_weight=view.mix_weight) for draw, view in views.items()}
        clips = {draw: self._view(draw, view) for draw, view in views.items()}
        weight_B = torch.tensor([views[draw].mix_weight for draw in own])
        own_rows, partner_rows = ([draw.row for draw in draws] for draws in (own, partners))
        y_BC, known_BC = _mix_labels(self._y_NC[own_rows], self._y_NC[partner_rows], weight_B)
        augment = self.recipe.augment
        is_clean = clean or not augment.has_clean_view
        shard = Shard(
            clip_ids=tuple(self.clips[row].clip_id for row in own_rows),
            view=epoch,
            x_BT=torch.stack([clips[draw][0] for draw in own]),
            y_BC=y_BC,
            known_BC=known_BC,
            masks_B4=torch.tensor([views[draw].masks for draw in own]),
            sound_B2=_where_padded([clips[draw][1] for draw in own], self.length),
            load_clean=None if is_clean else partial(self._load, own, partners, views, epoch, clean=True),
        )
        if augment.mixup:
            partner_x_BT = torch.stack([clips[draw][0] for draw in partners])
            shard.partner_sound_B2 = _where_padded([clips[draw][1] for draw in partners], self.length)
            shard.mix_weight_B = weight_B
            if augment.mixup_on == "mel":
                shard.partner_x_BT = partner_x_BT
            else:
                shard.x_BT = torch.lerp(partner_x_BT, shard.x_BT, weight_B[:, None])
        return shard

    def _view(self, draw: Draw, view: View) -> tuple[Tensor, tuple[int, int]]:
        """The waveform of this view of a clip, and where its sound is (`sound_of_view`)."""
        x_T = self.cache.load(self.clips[draw.row].clip_id)
        return apply_view(x_T, view, length=self.length), sound_of_view(len(x_T), view, length=self.length)


def _where_padded(sounds: list[tuple[int, int]], length: int) -> Tensor | None:
    """sound_B2 of clips; None where none is padded."""
    return torch.tensor(sounds) if any(samples < length for _, samples in sounds) else None


def _count_occurrences(order_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each draw of an epoch's order, the number of earlier draws of the same clip."""
    by_clip_N = order_N.argsort(kind="stable")  # positions grouped by clip, in the order of the epoch
    sorted_N = order_N[by_clip_N]
    occurrence_N = np.empty_like(order_N)
    occurrence_N[by_clip_N] = np.arange(len(order_N)) - np.searchsorted(sorted_N, sorted_N)
    return occurrence_N


def _mix_labels(own_BC: Tensor, partner_BC: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of mixtures, and the known share of each: the mixture's weight of the clips whose label is known.

    A label unknown for one clip is that of the other, one unknown for both stays unknown.
    """
    known_BC = torch.lerp((~partner_BC.isnan()).float(), (~own_BC.isnan()).float(), weight_B[:, None])
    own_BC, partner_BC = own_BC.where(~own_BC.isnan(), partner_BC), partner_BC.where(~partner_BC.isnan(), own_BC)
    return torch.lerp(partner_BC, own_BC, weight_B[:, None]), known_BC


def evaluation_batch(clips: Sequence[Clip], dataset: Dataset, cache: ClipCache, recipe: Recipe) -> Shard:
    """These clips without augmentation, cut or padded to clip_seconds; view 0."""
    length = round(recipe.data.clip_seconds * cache.rate)
    y_BC = torch.from_numpy(dataset.targets(clips))
    stored = [cache.load(clip.clip_id) for clip in clips]
    sounds = [sound_of_view(len(x_T), clean_view(), length=length) for x_T in stored]
    return Shard(
        clip_ids=tuple(clip.clip_id for clip in clips),
        view=0,
        x_BT=torch.stack([apply_view(x_T, clean_view(), length=length) for x_T in stored]),
        y_BC=y_BC,
        known_BC=(~y_BC.isnan()).float(),
        masks_B4=torch.zeros(len(clips), 4),
        sound_B2=_where_padded(sounds, length),
    )
