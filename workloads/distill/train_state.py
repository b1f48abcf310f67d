"""One model of a run with its optimizer, learning-rate curve and weight average, all counted in its own steps."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workloads.config.recipe import Model, Optimizer
from workloads.distill.averaging import build_average
from workloads.models.tagger import Tagger
from workloads.runtime.session import Session


def learning_rate(optimizer: Optimizer, own_step: int, total: int) -> float:
    """The rate for the step after `own_step` of `total`: the warm-up's curve, then what the decay leaves of lr.

    Exponential warm-up and linear decay: reference/efficientat.md section 4. Falls by steps: cmkd.md 2.4.
    """
    warm = optimizer.warmup * total
    if own_step < warm:
        if optimizer.warmup_curve == "exponential":
            return optimizer.lr * math.exp(-5 * (1 - own_step / warm) ** 2)
        return optimizer.lr * (own_step + 1) / (warm + 1)
    if optimizer.decay == "constant":
        return optimizer.lr
    begin = optimizer.decay_from * total
    if optimizer.decay == "step":
        falls = (own_step - begin) / max(1.0, optimizer.decay_every * total) + 1
        return optimizer.lr * optimizer.decay_factor ** max(0, math.floor(falls + 1e-9))  # shares are no exact numbers
    if optimizer.decay == "linear":
        left = 1 - min(1.0, max(0.0, (own_step - begin) / max(1.0, optimizer.decay_until * total - begin)))
    else:
        left = 0.5 * (1 + math.cos(math.pi * (own_step - warm) / max(1.0, total - warm)))
    return optimizer.lr * (optimizer.floor + (1 - optimizer.floor) * left)


class TrainState:
    """One model in memory: weights, optimizer, learning-rate curve, average; all counted in its own steps."""

    def __init__(
        self, model: Model, tagger: Tagger, *, total_steps: int, session: Session, group: Any, compiled: bool = False
    ) -> None:
        self.tagger = tagger.to(session.device).eval()
        if compiled:  # in place, which leaves names as they are; copies (averages, snapshots) are not compiled
            self.tagger.backbone.compile(dynamic=False)
        self.total_steps = total_steps
        self.own_step = 0
        self.skipped = 0  # of its own steps, for numbers that were not finite
        self.grad_norm = torch.zeros(())  # of the newest step, for the log; read there, or every step would wait for it
        self.last_lr = 0.0
        self.average = build_average(model.average, self.tagger)
        self._settings = model.optimizer
        kind = torch.optim.AdamW if model.optimizer.kind == "adamw" else torch.optim.Adam
        self.optimizer: torch.optim.Optimizer = kind(
            tagger.parameters(), lr=self.lr, betas=model.optimizer.betas, weight_decay=model.optimizer.weight_decay
        )
        # Batch norm's buffers are averaged over all shards by `ShardMeanStats`, so DDP must leave them alone.
        self.forward: nn.Module = (
            DistributedDataParallel(self.tagger, process_group=group, broadcast_buffers=False) if group else self.tagger
        )

    @property
    def lr(self) -> float:
        return learning_rate(self._settings, self.own_step, self.total_steps)

    @property
    def candidate(self) -> Tagger:
        """The weights that would be delivered now, as far as they can be scored: the moving average or the last."""
        return cast(Tagger, self.average.candidate(self.tagger))

    def clip_gradients(self) -> Tensor:
        """Bring the gradients down to the largest norm that is allowed; returns the norm they had."""
        limit = self._settings.clip_norm or math.inf
        self.grad_norm = nn.utils.clip_grad_norm_(self.tagger.parameters(), limit)
        return self.grad_norm

    def step(self, *, skip: bool = False) -> None:
        """One optimizer step on the gradients at hand; a skipped one counts, so that budgets and curves hold."""
        self.last_lr = self.lr
        for group in self.optimizer.param_groups:
            group["lr"] = self.last_lr
        self.own_step += 1
        self.tagger.set_progress(self.own_step, self.total_steps)
        if skip:
            self.skipped += 1
        else:
            self.optimizer.step()
            self.average.update(self.tagger)
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as flat tensors."""
        state = {f"model.{name}": tensor for name, tensor in self.tagger.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        return state | {f"average.{name}": tensor for name, tensor in self.average.tensors().items()}

    def scalars(self) -> dict[str, Any]:
        return {"own_step": self.own_step, "skipped": self.skipped, "average": self.average.scalars()}

    def load(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Take up the state that `tensors` and `scalars` gave."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        self.tagger.load_state_dict(parts["model"])
        slots: dict[int, dict[str, Tensor]] = {}
        parameters = list(self.tagger.parameters())
        for name, tensor in parts["optimizer"].items():
            index, slot = name.split(".", 1)
            parameter = parameters[int(index)]
            if tensor.shape == parameter.shape:  # laid out in memory like its parameter, as it was when it was made
                tensor = torch.empty_like(parameter).copy_(tensor)
            slots.setdefault(int(index), {})[slot] = tensor
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.average.load(parts["average"], scalars["average"])
        self.own_step, self.skipped = scalars["own_step"], scalars["skipped"]
