"""Batches: which clips form a shard, in which views, mixed how. Does not depend on models.

The content of a shard depends on the recipe, the step and the shard's index only, not on the worker that loads it.

A clip that is drawn again within an epoch (balanced sampling) gets another view: a draw is the clip's row and the
number of its earlier draws in the epoch.

Axes: B clips of a batch, here of a shard, N clips of a set, T samples, C tags.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.config.data import Data
from workloads.config.recipe import Recipe
from workloads.data.augment import StoredViews, View, clean_view, roll_and_amplify, shift_of_view, sound_of_view
from workloads.data.clip_store import ClipStore
from workloads.data.clips import Clip, Dataset
from workloads.data.decode import cut_or_pad
from workloads.data.events import HeardEvents, heard_events
from workloads.data.loading import CropLoader, CropReader, InProcesses, InThread, ShardRequest, require_memory
from workloads.data.replacements import Replacements
from workloads.data.samples import FULL_SCALE
from workloads.data.shard import Mixture, Shard, ViewKey
from workloads.data.splits import require_full_batch
from workloads.data.stored_mixtures import StoredMixtures, mix_with_partners
from workloads.runtime.rng import keyed_generator

CLIPS_AT_ONCE = 4096  # whose labels of all tags are in memory


class Draw(NamedTuple):
    """One draw of a clip in an epoch."""

    row: int  # of the clip among the training clips
    occurrence: int  # number of earlier draws of the clip in the epoch


class Batches:
    """The training batches of a run: `train.shards` shards of `train.shard_size` clips per step.

    `clips` are the training clips of the data set. With `stored_views`, clips are heard as the teachers of stores heard
    them, with `stored_mixtures` mixed as then. Raises ValueError where the clips do not fill the batch of one step.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        dataset: Dataset,
        cache: ClipStore,
        recipe: Recipe,
        stored_views: StoredViews | None = None,
        stored_mixtures: StoredMixtures | None = None,
    ) -> None:
        require_full_batch(len(clips), recipe.train)
        assert cache.rate == recipe.rate, "clips are cached at the highest rate that a model of the run needs"
        self.clips = clips
        self.cache = cache
        self.recipe = recipe
        length = round(recipe.data.clip_seconds * recipe.rate)
        self._mixtures, crops_of_a_draw = stored_mixtures, 2 if stored_mixtures else 1  # partners are read too
        require_memory(recipe.train, length=crops_of_a_draw * length)
        self._reader = CropReader(
            cache,
            recipe.augment,
            shard_size=crops_of_a_draw * recipe.train.shard_size,
            length=length,
            stored=stored_views,
        )
        self._loader: CropLoader = InThread(self._reader)
        self.waited_s = 0.0  # in total, for crops to be read or handed over by loaders
        self.replacements = Replacements(clips, cache, self._reader)
        self.steps_per_epoch = len(clips) // recipe.train.batch_size
        self.dataset = dataset
        self._learns_events = any(model.frame_labels for model in recipe.models.values())
        self._epoch_draws: tuple[int, NDArray[np.int64]] = (-1, np.empty((0, 2), np.int64))  # the last epoch's

    @contextmanager
    def loaded_ahead(self, steps: Iterable[int], shards: range, device: torch.device) -> Iterator[None]:
        """Within this context the crops of these shards, step by step, are loaded ahead in `train.loaders` processes.

        They must be asked for in that order. Without such processes they are loaded when they are asked for.
        """
        train, left = self.recipe.train, iter(steps)
        first = list(islice(left, 1))
        if not train.loaders or not first:
            yield
            return
        loader = self._loader = InProcesses(
            self._reader,
            (self._request(step, index)[0] for step in chain(first, left) for index in shards),
            loaders=train.loaders,
            prefetch=train.prefetch,
            shards_per_step=len(shards),
            device=device,
        )
        try:
            yield
        finally:
            self._loader = InThread(self._reader)
            loader.close()

    def shard(
        self, step: int, index: int, *, with_clean_view: bool = False, device: torch.device | str = "cpu"
    ) -> Shard:
        """Shard `index` of the global batch of `step` on a device; steps count from 0.

        Each clip is read once, for all views; what the views do to it is computed on the device. Raises OSError where a
        disk, a store or a loader process fails, ValueError where a damaged clip finds no replacement.
        """
        request, rows = self._request(step, index)
        began = time.perf_counter()
        crops = self._loader.load(request)
        self.waited_s += time.perf_counter() - began
        if crops.read.broken:
            self._require_replaceable(request, crops.read.broken)
            request, rows, crops = self.replacements.fill(request, rows, crops, step=step)
        samples, drawn_views = crops.read.samples, crops.read.views
        crops_BT = crops.x_BT.to(device, non_blocking=True)
        mixture = self._mixture(drawn_views, step, index) if self.recipe.augment.mixup else None
        own = slice(self.recipe.train.shard_size)  # the rest are the partners of stored mixtures
        unmixed_y_BC = torch.from_numpy(self.dataset.targets([self.clips[row] for row in rows]))
        y_BC, known_BC = mix_labels(unmixed_y_BC, mixture)
        mix_mels, on_device = self.recipe.augment.mixup_on == "mel", mixture and mixture.to(device)

        def shard_of(views: Sequence[View]) -> Shard:
            x_BT = roll_and_amplify(crops_BT, views, scale=1 / FULL_SCALE)
            sound_B2 = _where_padded(samples, views, x_BT.shape[1])
            if self._mixtures:
                x_BT = mix_with_partners(x_BT, drawn_views)
            elif on_device is not None and not mix_mels:
                x_BT = on_device.of(x_BT)
            return Shard(
                keys=request.keys[own],
                x_BT=x_BT,
                y_BC=y_BC[own],
                known_BC=known_BC[own],
                unmixed_y_BC=unmixed_y_BC[own],
                masks_B4=torch.tensor([view.masks for view in views[own]]),
                sound_B2=None if sound_B2 is None else sound_B2[own],
                partner_sound_B2=None if sound_B2 is None or not self._mixtures else sound_B2[own.stop :],
                mixture=None if self._mixtures else on_device,
                mix_mels=mix_mels,
                shift_B=torch.tensor([shift_of_view(view, length=x_BT.shape[1]) for view in views[own]]),
                events=self._events(rows, samples, views, unmixed_y_BC, mixture) if self._learns_events else None,
            ).to(device)

        shard = shard_of(drawn_views)
        shard.is_clean = not self.recipe.augment.has_clean_view
        if with_clean_view and not shard.is_clean:
            shard.clean_view = shard_of([clean_view()] * len(rows))
        return shard

    def _events(
        self, rows: Sequence[int], samples: Sequence[int], views: Sequence[View], y_SC: Tensor, mixture: Mixture | None
    ) -> HeardEvents:
        """When the tags of these clips sound in their views; `y_SC` are the labels of the clips themselves."""
        size = self.recipe.train.shard_size
        unmixed = Mixture(torch.ones(size), torch.arange(size))
        weight_B, partner_B = ((mixture or unmixed).weight_B[:size], (mixture or unmixed).partner_B[:size])
        return heard_events(
            [self.clips[row].events for row in rows],
            samples,
            views,
            length=self._reader.shape[1],
            rate=self.recipe.rate,
            columns=self.dataset.columns,
            y_SC=y_SC.numpy(),
            weight_B=weight_B,
            partner_B=partner_B,
        )

    def _request(self, step: int, index: int) -> tuple[ShardRequest, list[int]]:
        """What a shard consists of, and the rows of its clips among the training clips."""
        assert 0 <= index < self.recipe.train.shards, f"shard {index} of {self.recipe.train.shards}"
        epoch, draws = self._batch_draws(step)
        size = self.recipe.train.shard_size
        draws = draws[index * size : (index + 1) * size]
        rows = [draw.row for draw in draws]
        keys = tuple(ViewKey(self.clips[row].clip_id, epoch, occurrence) for row, occurrence in draws)
        if self._mixtures:
            heard = [self._mixtures.heard(row, epoch + occurrence) for row, occurrence in draws]
            assert None not in heard, "every clip has a view whose partner trains: it was checked"
            views, partners = zip(*heard, strict=True)
            rows += partners
            keys = tuple(ViewKey(self.clips[row].clip_id, view, 0) for row, view in zip(rows, views * 2, strict=True))
        return ShardRequest(keys, tuple(self.cache.entry(key.clip_id) for key in keys)), rows

    def _require_replaceable(self, request: ShardRequest, broken: Mapping[int, str]) -> None:
        """ValueError where another clip in the place of a broken one would not be what the store's teachers heard."""
        if self._mixtures:
            row, reason = next(iter(broken.items()))
            raise ValueError(
                f"clip {request.keys[row].clip_id} cannot be used any more: {reason}; a store of mixtures needs every "
                "clip: mend it, or make a store without it"
            )

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
                order = generator.choice(len(self.clips), size=len(self.clips), p=self._probability_N)
            else:
                order = generator.permutation(len(self.clips))
            self._epoch_draws = (epoch, np.stack((order, _count_occurrences(order)), axis=1))
        return self._epoch_draws[1]

    @cached_property
    def _probability_N(self) -> NDArray[np.float64]:
        return sampling_probabilities(self.clips, self.dataset)

    def _mixture(self, views: Sequence[View], step: int, index: int) -> Mixture:
        """Each clip's weight in its mixture, and its partner, by a keyed permutation without fixed points.

        Of stored mixtures the partners are the second half, each mixed with itself.
        """
        weight_B = torch.tensor([view.mix_weight for view in views])
        if self._mixtures:
            size = len(views) // 2
            return Mixture(weight_B, torch.arange(size, 2 * size).repeat(2))
        order = keyed_generator(self.recipe.augment.view_seed, "partners", step, index).permutation(len(views))
        partner_B = torch.empty(len(views), dtype=torch.long)
        partner_B[order] = torch.from_numpy(np.roll(order, 1))
        return Mixture(weight_B, partner_B.where(weight_B < 1, torch.arange(len(views))))


def sampling_probabilities(
    clips: Sequence[Clip], dataset: Dataset, *, at_once: int = CLIPS_AT_ONCE
) -> NDArray[np.float64]:
    """p_N float64, which sum to 1, of drawing each clip with data.sampling = "balanced".

    Proportional to the sum over a clip's tags of 1 / (clips with that tag): rare tags are drawn more often.

    Clips without any tag, which teach what the tags are not, and unlabelled ones are drawn as if "no tag" were a tag
    too. The labels of `at_once` clips are in memory at a time; the sum of a clip is one over a row of all tags, in
    which the order of the additions does not depend on how many rows there are.
    """
    count_C = np.array([*dataset.clips_per_tag(clips)[0], sum(not clip.tags for clip in clips)], np.float64)
    weights = []
    for start in range(0, len(clips), at_once):
        y_NC = np.nan_to_num(dataset.targets(clips[start : start + at_once])).astype(np.float64)
        y_NC = np.column_stack((y_NC, ~y_NC.any(axis=1)))
        weights.append((y_NC / count_C.clip(min=1)).sum(axis=1))
    weight_N: NDArray[np.float64] = np.concatenate(weights)
    return weight_N / weight_N.sum()


def _where_padded(samples: Sequence[int], views: Sequence[View], length: int) -> Tensor | None:
    """sound_B2 of clips of that many samples; None where none is padded."""
    if min(samples) >= length:
        return None
    return torch.tensor(
        [sound_of_view(own_samples, view, length=length) for own_samples, view in zip(samples, views, strict=True)]
    )


def _count_occurrences(order_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each draw of an epoch's order, the number of earlier draws of the same clip."""
    by_clip_N = order_N.argsort(kind="stable")  # positions grouped by clip, in the order of the epoch
    sorted_N = order_N[by_clip_N]
    occurrence_N = np.empty_like(order_N)
    occurrence_N[by_clip_N] = np.arange(len(order_N)) - np.searchsorted(sorted_N, sorted_N)
    return occurrence_N


def mix_labels(y_BC: Tensor, mixture: Mixture | None) -> tuple[Tensor, Tensor]:
    """Labels y_BC of mixtures, and the known share of each: the mixture's weight of the clips whose label is known.

    `y_BC` are those of the clips, NaN where unknown. A label unknown for one clip is that of the other, one unknown for
    both stays unknown.
    """
    known_BC = ~y_BC.isnan()
    if mixture is None:
        return y_BC, known_BC.float()
    partner_BC = y_BC[mixture.partner_B]
    own_BC, partner_BC = y_BC.where(known_BC, partner_BC), partner_BC.where(~partner_BC.isnan(), y_BC)
    return torch.lerp(partner_BC, own_BC, mixture.weight_B[:, None]), mixture.of(known_BC.float())


def evaluation_batches(
    clips: Sequence[Clip], dataset: Dataset, cache: ClipStore, data: Data, *, at_once: int
) -> Iterator[tuple[list[int], Shard]]:
    """These clips without augmentation, in windows of clip_seconds: the clip of each (a position), and the windows.

    At most `at_once` windows in a batch, so that the length of a recording does not decide how much memory is needed.
    Clips that are no longer than a window, each padded to one, make batches of that many clips. They are read, and
    decoded where they are packed as they were, in the calling thread. Raises OSError where a disk or a store fails,
    ValueError where a packed clip is damaged.
    """
    length = round(data.clip_seconds * cache.rate)
    entries = cache.ahead([cache.entry(clip.clip_id) for clip in clips])
    windows = (
        (row, cut_or_pad(x_T, length, offset=start).clone(), len(x_T) - start)  # not a view of the whole recording
        for row, x_T in enumerate(cache.load(clip.clip_id) for clip, _ in zip(clips, entries, strict=True))
        for start in window_starts(len(x_T), length, data.long_clips)
    )
    while batch := list(islice(windows, at_once)):
        rows = [row for row, _, _ in batch]
        y_BC = torch.from_numpy(dataset.targets([clips[row] for row in rows]))
        yield (
            rows,
            Shard(
                keys=tuple(ViewKey(clips[row].clip_id, 0, 0) for row in rows),
                x_BT=torch.stack([x_T for _, x_T, _ in batch]),
                y_BC=y_BC,
                known_BC=(~y_BC.isnan()).float(),
                unmixed_y_BC=y_BC,
                masks_B4=torch.zeros(len(rows), 4),
                sound_B2=_where_padded([samples for _, _, samples in batch], [clean_view()] * len(rows), length),
            ),
        )


def window_starts(samples: int, length: int, long_clips: str) -> list[int]:
    """Where the windows of a recording begin, by `data.long_clips`: one after the other, the last ending with it.

    One at 0 for a recording that is no longer than a window, and with "start".
    """
    last = max(0, samples - length)
    return [0] if long_clips == "start" else [*range(0, last, length), last]
