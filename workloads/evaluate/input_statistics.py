"""Mean and deviation of what the networks of a recipe hear of a data set, from which their normalisation is set.

Axes: B windows, M mel bands, F frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workloads.data.batches import evaluation_batches
from workloads.data.prepare import PreparedData
from workloads.models.front_end import build_front_end

# A network's input is (mel - mean) / std; AST divides by two deviations (reference/cmkd.md 2.3), the others by one.
DEVIATIONS = {"ast": 2.0}


@dataclass(frozen=True)
class InputStatistics:
    """Of the log-mel of one model's front end: `std` is the setting, `deviations` of which are in it."""

    kind: str
    mean: float
    deviation: float
    deviations: float

    @property
    def std(self) -> float:
        return self.deviations * self.deviation

    def settings(self, model: str) -> list[str]:
        """The values of --set that normalise the model's input by them."""
        place = f"models.{model}.front_end"
        return [f"{place}.mean={self.mean:.7g}", f"{place}.std={self.std:.7g}"]


class _Moments:
    """Number, mean and sum of squared differences of the values so far, in float64."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Join those of a batch (Chan, Golub and LeVeque 1983): no large sum is subtracted from another one."""
        values = values.double()
        count, mean = values.numel(), float(values.mean())
        difference, total = mean - self.mean, self.count + count
        self.squares += float((values - mean).square().sum()) + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = total


def input_statistics(prepared: PreparedData) -> dict[str, InputStatistics]:
    """For each model of the recipe, the statistics of its log-mels over the training clips; controls have their
    student's settings and are left out.

    With x_i the N cells, all bands and frames, of all windows in which the validation of a run would hear these clips,
    un-augmented, padding included, cut or padded to the model's `frames` where it sets them: mean = sum(x_i) / N,
    deviation = sqrt(sum((x_i - mean)^2) / N). So the inputs have mean 0 and deviation 1 / `deviations`.

    Batch by batch, in float64. Raises ValueError where the cells are all alike: a deviation of 0 normalises nothing.
    """
    recipe, cache = prepared.recipe, prepared.cache
    models = {name: model for name, model in recipe.models.items() if not model.control_of}
    kinds = {model.front_end.kind for model in models.values()}
    front_ends = {kind: build_front_end(kind, clip_rate=cache.rate) for kind in kinds}
    moments = {model.front_end: _Moments() for model in models.values()}
    batches = evaluation_batches(
        prepared.splits.train, prepared.dataset, cache, recipe.data, at_once=recipe.train.shard_size
    )
    for _, shard in batches:
        with torch.no_grad():
            mels = {kind: front_end(shard.x_BT, shard.sound(front_end)) for kind, front_end in front_ends.items()}
        for settings, own in moments.items():
            own.add(front_ends[settings.kind].fit_frames(mels[settings.kind], settings))
    found = {}
    for name, model in models.items():
        own = moments[model.front_end]
        if not own.squares > 0:
            raise ValueError(f"models.{name}.front_end: the training clips are all alike to it; are they silent?")
        deviation = (own.squares / own.count) ** 0.5
        found[name] = InputStatistics(model.front_end.kind, own.mean, deviation, DEVIATIONS.get(model.arch.family, 1.0))
    return found
