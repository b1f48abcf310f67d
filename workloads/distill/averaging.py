"""Which weights of a model are delivered: the last, their moving average, or the mean of the best at validation.

Knows the model as a module and a score as a number where more is better. The loop calls `update` after every own step
and `validated` at each validation. Build an average when its model has its first weights.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from workloads.config.recipe import Average

State = dict[str, Tensor]


class WeightAverage(Protocol):
    """`tensors` and `scalars` (JSON-able) hold all that `load` needs for an exact continuation."""

    def update(self, model: nn.Module) -> None:
        """Hear of one more own step."""

    def validated(self, score: float, model: nn.Module) -> None:
        """Hear how the model scored at validation."""

    def candidate(self, model: nn.Module) -> nn.Module:
        """The module that validation should score."""

    def delivered(self, model: nn.Module) -> State:
        """A copy, on the CPU, of the state dict to deliver."""

    def tensors(self) -> State: ...

    def scalars(self) -> dict[str, Any]: ...

    def load(self, tensors: State, scalars: dict[str, Any]) -> None: ...


class LastWeights:
    """No average: what the last step left."""

    def update(self, model: nn.Module) -> None:
        pass

    def validated(self, score: float, model: nn.Module) -> None:
        pass

    def candidate(self, model: nn.Module) -> nn.Module:
        return model

    def delivered(self, model: nn.Module) -> State:
        return _copy(model)

    def tensors(self) -> State:
        return {}

    def scalars(self) -> dict[str, Any]:
        return {"kind": "none"}

    def load(self, tensors: State, scalars: dict[str, Any]) -> None:
        _check_kind("none", scalars)


class MovingAverage:
    """Exponential moving average of weights and batch norm's running statistics; counters are the model's own.

    The first update copies; update number n + 1 then decays by min(decay, (1 + n) / (10 + n)), because a long average
    would otherwise remember the first weights for long.
    """

    def __init__(self, decay: float, model: nn.Module) -> None:
        self._decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True).eval().requires_grad_(False)

    def update(self, model: nn.Module) -> None:
        self._averaged.update_parameters(model)

    def validated(self, score: float, model: nn.Module) -> None:
        pass

    def candidate(self, model: nn.Module) -> nn.Module:
        return self._averaged.module

    def delivered(self, model: nn.Module) -> State:
        return _copy(self._averaged.module)

    def tensors(self) -> State:
        return dict(self._averaged.module.state_dict())

    def scalars(self) -> dict[str, Any]:
        return {"kind": "ema", "updates": int(self._averaged.n_averaged)}

    def load(self, tensors: State, scalars: dict[str, Any]) -> None:
        _check_kind("ema", scalars)
        self._averaged.module.load_state_dict(tensors)
        self._averaged.n_averaged.fill_(scalars["updates"])

    def _blend(self, averaged: PARAM_LIST, current: PARAM_LIST, _: Tensor | int) -> None:
        """One update of tensors that share device and type."""
        if not averaged[0].is_floating_point():
            for mine, theirs in zip(averaged, current, strict=True):
                mine.copy_(theirs)
            return
        updates = int(self._averaged.n_averaged)
        get_ema_multi_avg_fn(min(self._decay, (1 + updates) / (10 + updates)))(averaged, current, updates)


class BestWeights:
    """The mean of the `best` best-scored weights so far; of equal scores the earlier counts as better."""

    def __init__(self, best: int) -> None:
        self._best = best
        self._kept: list[tuple[float, State]] = []  # best first

    def update(self, model: nn.Module) -> None:
        pass

    def validated(self, score: float, model: nn.Module) -> None:
        assert math.isfinite(score), score
        if len(self._kept) < self._best or score > self._kept[-1][0]:
            self._keep([*self._kept, (score, _copy(model))])

    def candidate(self, model: nn.Module) -> nn.Module:
        return model

    def delivered(self, model: nn.Module) -> State:
        if not self._kept:
            return _copy(model)
        states = [state for _, state in self._kept]
        return {name: _mean([state[name] for state in states]) for name in states[0]}

    def tensors(self) -> State:
        return {
            f"{rank}.{name}": tensor for rank, (_, state) in enumerate(self._kept) for name, tensor in state.items()
        }

    def scalars(self) -> dict[str, Any]:
        return {"kind": "best", "scores": [score for score, _ in self._kept]}

    def load(self, tensors: State, scalars: dict[str, Any]) -> None:
        _check_kind("best", scalars)
        states: list[State] = [{} for _ in scalars["scores"]]
        for key, tensor in tensors.items():
            rank, name = key.split(".", 1)
            states[int(rank)][name] = tensor
        self._keep(list(zip(scalars["scores"], states, strict=True)))

    def _keep(self, entries: list[tuple[float, State]]) -> None:
        self._kept = sorted(entries, key=lambda entry: -entry[0])[: self._best]  # stable: earlier stays first


def build_average(average: Average, model: nn.Module) -> WeightAverage:
    """The average that the configuration asks for, starting from the model's present weights."""
    if average.kind == "ema":
        return MovingAverage(average.decay, model)
    return BestWeights(average.best) if average.kind == "best" else LastWeights()


def _copy(model: nn.Module) -> State:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def _mean(tensors: list[Tensor]) -> Tensor:
    """Their mean, best first; a counter has no mean and is the best one's."""
    if not tensors[0].is_floating_point():
        return tensors[0].clone()
    return torch.stack(tensors).double().mean(0).to(tensors[0].dtype)


def _check_kind(kind: str, scalars: dict[str, Any]) -> None:
    if scalars["kind"] != kind:
        raise ValueError(
            f"average.kind = {kind!r}: the checkpoint was made with {scalars['kind']!r}; keep that kind to resume, or "
            "start a new run"
        )
