"""A tagger: front end, the model's own normalisation, and a backbone. Knows no training, no teachers and no data set.

Axes: B clips, T samples, M mel bands, F frames, C tags.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from workloads.config.recipe import Model
from workloads.models.backbone import Outputs
from workloads.models.families import adapt_weights, build_backbone
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
        self.started_afresh: tuple[str, ...] = ()  # what first weights did not bring
        self.began_as: dict[str, Any] = {}  # what is known of the tagger whose weights were the first ones
        self.front_end = build_front_end(model.front_end.kind, clip_rate=clip_rate)
        self.mean = self.front_end.mean if model.front_end.mean is None else model.front_end.mean
        self.std = self.front_end.std if model.front_end.std is None else model.front_end.std
        self.backbone = build_backbone(
            model.arch,
            bands=self.front_end.bands,
            frames=model.front_end.frames or self.front_end.frames(clip_seconds),
            num_classes=len(tags),
        )

    def forward(self, mel_BMF: Tensor) -> Tensor:
        """Logits_BC of this model's own log-mel, masked where the view says so but un-normalised."""
        return self.backbone(self.normalised(mel_BMF))

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        """Logits, embedding and temporal sequence, from the same log-mel as `forward`."""
        return self.backbone.outputs(self.normalised(mel_BMF))

    def normalised(self, mel_BMF: Tensor) -> Tensor:
        """What the backbone reads: as many frames as it was built for where the recipe says how many, normalised."""
        if frames := self.model.front_end.frames:
            missing = frames - mel_BMF.shape[-1]  # a negative number cuts
            mel_BMF = nn.functional.pad(mel_BMF, (0, missing), value=self.front_end.mask_value)
        return (mel_BMF - self.mean) / self.std

    def tag(self, x_BT: Tensor) -> Tensor:
        """Logits_BC of waveforms at `clip_rate`; in eval mode only."""
        assert not self.training, "a model in training mode would learn from the clips it tags: call eval() first"
        return self(self.front_end(x_BT))

    def set_progress(self, own_step: int, total: int) -> None:
        """Tell a backbone that changes as it learns how far it is; most do not ask."""
        tell = getattr(self.backbone, "set_progress", None)
        if tell is not None:
            tell(own_step, total)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.backbone.parameters())

    def load_initial(self, state: dict[str, Tensor], tags: tuple[str, ...] | None = None) -> None:
        """Start from a state dict in the family's key names or from a whole tagger's, which told these `tags` apart.

        What does not fit (a head for other tags) stays as it was drawn and is named in `started_afresh`. Raises
        ValueError naming the tensors that are unknown, missing or of the wrong shape.
        """
        prefix = "backbone."
        if any(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        other_tags = tags is not None and tags != self.tags
        weights, dropped = adapt_weights(state, self.backbone, family=self.model.arch.family, other_classes=other_tags)
        self.backbone.load_state_dict(self.backbone.state_dict() | weights)
        self.started_afresh = dropped


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
    """A tagger whose first weights depend on the run's `seed` and the model's `name` only.

    The global random state is left as it was, so models do not move each other's weights.
    """
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU: only its generator is touched
        torch.default_generator.manual_seed(keyed_seed(seed, name, "weights"))
        return Tagger(model, tags=tags, labels=labels, clip_seconds=clip_seconds, clip_rate=clip_rate)
