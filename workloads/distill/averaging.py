"""Weight averages: a model delivers its last weights, their moving average, or the mean of the best at validation.

Does not depend on taggers or metrics: a model is any module, a score any number of which more is better.
"""

import copy
import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from workloads.config.recipe import Average
from workloads.distill.batch_norm import running_statistics

State = dict[str, Tensor]


class WeightAverage(Protocol):
    """The average of one model's weights, built when the model has its initial weights."""

    def update(self, model: nn.Module) -> None:
        """Update the average; called once after each optimizer step of the model that is not skipped."""

    def on_validation(self, score: float, model: nn.Module) -> None:
        """Take note of a validation score of the model's current weights; called once per validation."""

    def evaluation_model(self, model: nn.Module) -> nn.Module:
        """The module to score at validation: the average if it is a module, else the model."""

    def delivered_state(self, model: nn.Module) -> State:
        """The state dict to deliver, as a copy on the CPU."""

    def tensors(self) -> State:
        """The tensors that `load` needs to continue bit for bit."""

    def scalars(self) -> dict[str, Any]:
        """The values that `load` needs besides tensors; JSON-able."""

    def load(self, tensors: State, scalars: dict[str, Any]) -> None:
        """Restore the average; raises ValueError where it was saved by another kind of average."""


class LastWeights:
    """No average: the weights after the last step."""

    def update(self, model: nn.Module) -> None:
        pass

    def on_validation(self, score: float, model: nn.Module) -> None:
        pass

    def evaluation_model(self, model: nn.Module) -> nn.Module:
        return model

    def delivered_state(self, model: nn.Module) -> State:
        return _copy(model)

    def tensors(self) -> State:
        return {}

    def scalars(self) -> dict[str, Any]:
        return {"kind": "none"}

    def load(self, tensors: State, scalars: dict[str, Any]) -> None:
        _check_kind("none", scalars)


class MovingAverage:
    """Exponential moving average of weights and batch norm's running statistics; other saved buffers are copied.

    average <- d average + (1 - d) weights. The first update copies the weights; after n updates the next one uses
    d = min(decay, (1 + n) / (10 + n)), because with d = decay the first weights would stay in a long average for long.
    Buffers outside the state dict are constants, the same in the model and its average.
    """

    def __init__(self, decay: float, model: nn.Module) -> None:
        self._decay = decay
        self._updates = 0
        self._averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self._tensors = _tensors(self._averaged)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        averaged, other = self._tensors
        current, current_other = _tensors(model)
        if self._updates:
            decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:
            torch._foreach_copy_(averaged, current)
        if other:
            torch._foreach_copy_(other, current_other)
        self._updates += 1

    def on_validation(self, score: float, model: nn.Module) -> None:
        pass

    def evaluation_model(self, model: nn.Module) -> nn.Module:
        return self._averaged

    def delivered_state(self, model: nn.Module) -> State:
        return _copy(self._averaged)

    def tensors(self) -> State:
        return dict(self._averaged.state_dict())

    def scalars(self) -> dict[str, Any]:
        return {"kind": "ema", "updates": self._updates}

    def load(self, tensors: State, scalars: dict[str, Any]) -> None:
        _check_kind("ema", scalars)
        self._averaged.load_state_dict(tensors)
        self._updates = scalars["updates"]


class MeanOfBest:
    """The mean of the weights with the `num_best` best validation scores; of equal scores the earlier ranks first.

    Batch norm's running statistics are averaged too; other buffers are those of the best.
    """

    def __init__(self, num_best: int) -> None:
        self._num_best = num_best
        self._best: list[tuple[float, State]] = []  # best first

    def update(self, model: nn.Module) -> None:
        pass

    def on_validation(self, score: float, model: nn.Module) -> None:
        assert math.isfinite(score), score
        if len(self._best) < self._num_best or score > self._best[-1][0]:
            self._set_best([*self._best, (score, _copy(model))])

    def evaluation_model(self, model: nn.Module) -> nn.Module:
        return model

    def delivered_state(self, model: nn.Module) -> State:
        if not self._best:
            return _copy(model)
        states = [state for _, state in self._best]
        averaged = dict(model.named_parameters()) | running_statistics(model)
        return {
            name: _mean([state[name] for state in states]) if name in averaged else tensor.clone()
            for name, tensor in states[0].items()
        }

    def tensors(self) -> State:
        return {
            f"{rank}.{name}": tensor for rank, (_, state) in enumerate(self._best) for name, tensor in state.items()
        }

    def scalars(self) -> dict[str, Any]:
        return {"kind": "best", "scores": [score for score, _ in self._best]}

    def load(self, tensors: State, scalars: dict[str, Any]) -> None:
        _check_kind("best", scalars)
        states: list[State] = [{} for _ in scalars["scores"]]
        for key, tensor in tensors.items():
            rank, name = key.split(".", 1)
            states[int(rank)][name] = tensor
        self._set_best(list(zip(scalars["scores"], states, strict=True)))

    def _set_best(self, entries: list[tuple[float, State]]) -> None:
        self._best = sorted(entries, key=lambda entry: -entry[0])[: self._num_best]  # stable: earlier stays first


def build_average(average: Average, model: nn.Module) -> WeightAverage:
    """The kind of average that the configuration asks for, starting from the model's current weights."""
    if average.kind == "ema":
        return MovingAverage(average.decay, model)
    return MeanOfBest(average.best) if average.kind == "best" else LastWeights()


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a model that are averaged, and its other saved buffers (counters, settings)."""
    averaged = dict(model.named_parameters()) | running_statistics(model)
    saved = model.state_dict().keys()
    other = {name: buffer for name, buffer in model.named_buffers() if name in saved and name not in averaged}
    return [*averaged.values()], [*other.values()]


def _copy(model: nn.Module) -> State:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def _mean(tensors: list[Tensor]) -> Tensor:
    """The mean of one tensor of several models."""
    return torch.stack(tensors).double().mean(0).to(tensors[0].dtype)


def _check_kind(kind: str, scalars: dict[str, Any]) -> None:
    if scalars["kind"] != kind:
        raise ValueError(
            f"average.kind = {kind!r}: the checkpoint was made with {scalars['kind']!r}; keep that kind to resume, or "
            "start a new run"
        )
