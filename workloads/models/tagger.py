"""A tagger: front end, the model's normalisation, and a backbone. Does not depend on training, teachers or data sets.

Axes: B clips, T samples, M mel bands, F frames, C tags.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from workloads.config.recipe import Model
from workloads.models.backbone import Outputs
from workloads.models.families import adapt_weights, build_backbone
from workloads.models.fit import require_fit
from workloads.models.front_end import build_front_end
from workloads.runtime.rng import keyed_seed


class Tagger(nn.Module):
    """A model of a run: from a clip of `clip_seconds` at `clip_rate` Hz to one logit for each of `tags`."""

    def __init__(
        self,
        model: Model,
        *,
        tags: tuple[str, ...],
        labels: Literal["single", "multi"],
        clip_seconds: float,
        clip_rate: int,
    ) -> None:
        super().__init__()
        self.model, self.tags, self.labels = model, tags, labels
        self.clip_seconds, self.clip_rate = clip_seconds, clip_rate
        self.newly_initialised: tuple[str, ...] = ()  # tensors that the initial weights did not provide
        self.initial_checkpoint: dict[str, Any] = {}  # the state of the published tagger that provided them, if any
        self.front_end = build_front_end(model.front_end.kind, clip_rate=clip_rate)
        self.mean, self.std = self.front_end.mean_and_std(model.front_end)
        self.num_frames = self.front_end.input_frames(model.front_end, clip_seconds)
        self.backbone = build_backbone(
            model.arch, bands=self.front_end.bands, frames=self.num_frames, num_classes=len(tags)
        )

    def forward(self, mel_BMF: Tensor) -> Tensor:
        """Logits_BC of this model's log-mel, masked where the view has masks but un-normalised."""
        return self.backbone(self.normalise(mel_BMF))

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        """Logits, embedding and temporal sequence, from the same log-mel as `forward`."""
        return self.backbone.outputs(self.normalise(mel_BMF))

    def normalise(self, mel_BMF: Tensor) -> Tensor:
        """The backbone's input: normalised, and padded or cut to the recipe's number of frames where it has one."""
        return (self.front_end.fit_frames(mel_BMF, self.model.front_end) - self.mean) / self.std

    def tag(self, x_BT: Tensor, sound_BT: Tensor | None = None) -> Tensor:
        """Logits_BC of waveforms at `clip_rate`; in eval mode only. `sound_BT`: see `front_end`."""
        assert not self.training, "a model in training mode would update its batch norm from these clips: call eval()"
        return self(self.front_end(x_BT, sound_BT))

    def set_progress(self, own_step: int, total: int) -> None:
        """Report the model's progress to its backbone, if that defines `set_progress`; most do not."""
        backbone_set_progress = getattr(self.backbone, "set_progress", None)
        if backbone_set_progress is not None:
            backbone_set_progress(own_step, total)

    def load_own(self, state: dict[str, Tensor], name: str) -> None:
        """Load the state dict of this very tagger; ValueError, naming its file, where it is another one's."""
        try:
            require_fit(state, self)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self.load_state_dict(state)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.backbone.parameters())

    def load_initial(self, state: dict[str, Tensor], tags: tuple[str, ...] | None = None) -> None:
        """Load initial weights: a state dict in the family's key names, or that of a whole tagger for these `tags`.

        What does not fit (a head for other tags) keeps its random initial values and is named in `newly_initialised`.
        Raises ValueError naming the tensors that are unknown, missing or of the wrong shape.
        """
        prefix = "backbone."
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        other_tags = tags is not None and tags != self.tags
        weights, dropped = adapt_weights(state, self.backbone, family=self.model.arch.family, other_classes=other_tags)
        self.backbone.load_state_dict(self.backbone.state_dict() | weights)
        self.newly_initialised = dropped


def outputs_of_silence(tagger: Tagger) -> Outputs:
    """The outputs for one silent clip, for their shapes; on the CPU, without gradient, and the mode is as before."""
    was_training = tagger.training
    silence_BMF = torch.zeros(1, tagger.front_end.bands, tagger.num_frames)
    with torch.no_grad():
        outputs = tagger.eval().outputs(silence_BMF)
    tagger.train(was_training)
    return outputs


def build_tagger(
    model: Model,
    *,
    name: str,
    tags: tuple[str, ...],
    labels: Literal["single", "multi"],
    clip_seconds: float,
    clip_rate: int,
    seed: int,
) -> Tagger:
    """A tagger whose initial weights depend only on the run's `seed` and the model's `name`.

    The global random state is restored, so that models do not change each other's weights.
    """
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU, so only its generator is used
        torch.default_generator.manual_seed(keyed_seed(seed, name, "weights"))
        return Tagger(model, tags=tags, labels=labels, clip_seconds=clip_seconds, clip_rate=clip_rate)
