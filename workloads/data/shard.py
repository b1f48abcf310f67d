"""A shard: clips of one forward pass, each in one view, and what they were made from. Does not depend on models.

Axes: B clips of the shard, T samples, M mel bands, F frames, C tags, 4 masks (time start, time width, mel start, mel
width), 2 (where a clip's sound begins, how long it is).
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from workloads.data.augment import mask_mel, sound_mask, stored_number
from workloads.data.events import HeardEvents


class MelFrontEnd(Protocol):
    """Computes log-mels of waveforms; front ends of the same kind give the same numbers."""

    kind: str
    mask_value: float  # of masked cells
    hears_padding: bool

    def __call__(self, x_BT: Tensor, sound_BT: Tensor | None) -> Tensor: ...


class ViewKey(NamedTuple):
    """What a view of a clip is computed from, beside the recipe's `[augment]` (`augment.draw_view`)."""

    clip_id: str
    view: int  # the epoch; 0 in evaluation
    occurrence: int  # number of earlier draws of the clip in the epoch


def stored_view(key: ViewKey, count: int) -> int:
    """Which of the `count` views of a clip that a store holds belongs to this draw of it: epochs go round them."""
    return stored_number(key.view, key.occurrence, count=count)


@dataclass(frozen=True)
class Mixture:
    """How the clips of a shard are mixed with each other: weight_B of each clip itself, and where its partner is."""

    weight_B: Tensor  # 1: not mixed
    partner_B: Tensor  # row of the shard; the clip's own where it is not mixed

    def of(self, values: Tensor) -> Tensor:
        """The mixtures of values that have one row for each clip."""
        weight = self.weight_B.view(-1, *[1] * (values.ndim - 1))
        return torch.lerp(values[self.partner_B], values, weight)

    def to(self, device: torch.device | str) -> "Mixture":
        return Mixture(self.weight_B.to(device, non_blocking=True), self.partner_B.to(device, non_blocking=True))


@dataclass(eq=False)
class Shard:
    """Clips of one forward pass. Labels are mixed already, waveforms too, or else log-mels will be (`mix_mels`).

    `sound_B2` is where each clip's sound begins and how long it is (`augment.sound_of_view`), before mixing; the rest
    is padding. None: no clip is padded. Of mixtures that a store's teachers heard (`stored_mixtures.py`) `mixture` is
    None, since partners are not in the shard; where their sound is, is `partner_sound_B2`.
    """

    keys: tuple[ViewKey, ...]
    x_BT: Tensor
    y_BC: Tensor  # labels; NaN where unknown: of an unlabelled clip all of them
    known_BC: Tensor  # the known share of each label: 0 or 1, between them for a mixture of a known and an unknown one
    unmixed_y_BC: Tensor  # labels of the clips themselves
    masks_B4: Tensor
    sound_B2: Tensor | None = None
    partner_sound_B2: Tensor | None = None
    mixture: Mixture | None = None
    mix_mels: bool = False
    shift_B: Tensor | None = None  # samples by which each clip is rolled to the right; None: none is
    events: HeardEvents | None = None  # where a model of the run learns when tags sound
    clean_view: "Shard | None" = None  # where it differs and was asked for
    is_clean: bool = True
    _mels: dict[str, Tensor] = field(default_factory=dict)  # by kind of front end

    @property
    def clip_ids(self) -> tuple[str, ...]:
        return tuple(key.clip_id for key in self.keys)

    def mel(self, front_end: MelFrontEnd) -> Tensor:
        """The log-mels mel_BMF, mixed and masked; computed once for all models with the same kind of front end."""
        if front_end.kind not in self._mels:
            with torch.no_grad():
                mel_BMF = front_end(self.x_BT, self.sound(front_end))
                if self.mix_mels and self.mixture is not None:
                    mel_BMF = self.mixture.of(mel_BMF)
                self._mels[front_end.kind] = mask_mel(mel_BMF, self.masks_B4, value=front_end.mask_value)
        return self._mels[front_end.kind]

    def sound(self, front_end: MelFrontEnd) -> Tensor | None:
        """sound_BT of `x_BT` for a front end that does not hear padding, where there is any; else None."""
        if front_end.hears_padding or self.sound_B2 is None:
            return None
        sound_BT = sound_mask(self.sound_B2, self.x_BT.shape[1])
        if self.partner_sound_B2 is not None:
            return sound_BT | sound_mask(self.partner_sound_B2, self.x_BT.shape[1])
        if self.mixture is None or self.mix_mels:
            return sound_BT
        return sound_BT | sound_BT[self.mixture.partner_B]  # of two added waveforms the longer one counts

    def sounds(self) -> list[Tensor]:
        """Where sound is, as sound_B2 of each clip and of its partner in a mixture; empty where no clip is padded."""
        if self.sound_B2 is None:
            return []
        partners = self.partner_sound_B2
        if partners is None and self.mixture is not None:
            partners = self.sound_B2[self.mixture.partner_B]
        return [self.sound_B2] if partners is None else [self.sound_B2, partners]

    def clean(self) -> "Shard":
        """The same clips, crops and mixtures without roll, gain and masks."""
        if self.is_clean:
            return self
        assert self.clean_view is not None, "ask for it when the shard is loaded"
        return self.clean_view

    def to(self, device: torch.device | str) -> "Shard":
        """This shard with its tensors on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        mixture, events = self.mixture and self.mixture.to(device), self.events and self.events.to(device)
        clean_view = self.clean_view and self.clean_view.to(device)
        return replace(self, **moved, mixture=mixture, events=events, clean_view=clean_view, _mels={})
