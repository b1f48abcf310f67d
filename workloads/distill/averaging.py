"""Weight averages: a model delivers its last weights, their moving average, or the mean of the best at validation.

Does not depend on taggers or metrics: a model is any module, a score any number of which more is better.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

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
    """Exponential moving average of weights and batch norm's running statistics; other buffers are copied.

    average <- d average + (1 - d) weights. The first update copies the weights; after n updates the next one uses
    d = min(decay, (1 + n) / (10 + n)), because with d = decay the first weights would stay in a long average for long.
    """

    def __init__(self, decay: float, model: nn.Module) -> None:
        self._decay = decay
        averaged = AveragedModel(model, multi_avg_fn=self._update_tensors)
        self._averaged = averaged.eval().requires_grad_(False)
        self._statistics = list(running_statistics(self._averaged.module).values())

    def update(self, model: nn.Module) -> None:
        updates = int(self._averaged.n_averaged)
        averages = [statistic.clone() for statistic in self._statistics]
        self._averaged.update_parameters(model)  # copies all buffers, also those that have an average
        if updates and averages:
            self._update_tensors(averages, self._statistics, updates)
            for statistic, average in zip(self._statistics, averages, strict=True):
                statistic.copy_(average)

    def on_validation(self, score: float, model: nn.Module) -> None:
        pass

    def evaluation_model(self, model: nn.Module) -> nn.Module:
        return self._averaged.module

    def delivered_state(self, model: nn.Module) -> State:
        return _copy(self._averaged.module)

    def tensors(self) -> State:
        return dict(self._averaged.module.state_dict())

    def scalars(self) -> dict[str, Any]:
        return {"kind": "ema", "updates": int(self._averaged.n_averaged)}

    def load(self, tensors: State, scalars: dict[str, Any]) -> None:
        _check_kind("ema", scalars)
        self._averaged.module.load_state_dict(tensors)
        self._averaged.n_averaged.fill_(scalars["updates"])

    def _update_tensors(self, averaged: PARAM_LIST, current: PARAM_LIST, updates: Tensor | int) -> None:
        """Update number `updates` of tensors that share device and type (torch's `multi_avg_fn`)."""
        updates = int(updates)
        get_ema_multi_avg_fn(min(self._decay, (1 + updates) / (10 + updates)))(averaged, current, updates)


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
