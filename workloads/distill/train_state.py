"""The training state of one model: weights, projections, optimizer, learning-rate curve, weight average.

All are counted in the model's own optimizer steps, not in the loop's. Does not depend on edges or other models.

Axes: B clips, M mel bands, F frames.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workloads.config.recipe import Model, Optimizer
from workloads.distill.averaging import build_average
from workloads.distill.sources import tagger_outputs
from workloads.models.tagger import Tagger
from workloads.runtime.session import Session

PROJECTION = "to_"


def learning_rate(optimizer: Optimizer, own_step: int, total: int) -> float:
    """The learning rate of the step after `own_step` of `total` steps: warm-up, then decay.

    In w warm-up steps it rises as lr exp(-5 (1 - step / w)^2) (exponential) or lr (step + 1) / (w + 1) (linear). Then
    it stays (constant), is multiplied by `decay_factor` every `decay_every` (step), or falls to floor x lr along a line
    (linear) or half a cosine (cosine). Sources: exponential warm-up and linear decay, reference/efficientat.md section
    4; decay by steps, reference/cmkd.md 2.4.
    """
    warmup_steps = optimizer.warmup * total
    if own_step < warmup_steps:
        if optimizer.warmup_curve == "exponential":
            return optimizer.lr * math.exp(-5 * (1 - own_step / warmup_steps) ** 2)
        return optimizer.lr * (own_step + 1) / (warmup_steps + 1)
    if optimizer.decay == "constant":
        return optimizer.lr
    begin = optimizer.decay_from * total
    if optimizer.decay == "step":
        falls = (own_step - begin) / max(1.0, optimizer.decay_every * total) + 1
        return optimizer.lr * optimizer.decay_factor ** max(0, math.floor(falls + 1e-9))  # 1e-9: shares are rounded
    if optimizer.decay == "linear":
        left = 1 - min(1.0, max(0.0, (own_step - begin) / max(1.0, optimizer.decay_until * total - begin)))
    else:
        left = 0.5 * (1 + math.cos(math.pi * (own_step - warmup_steps) / max(1.0, total - warmup_steps)))
    return optimizer.lr * (optimizer.floor + (1 - optimizer.floor) * left)


class TrainingForward(nn.Module):
    """A tagger's outputs in training, as `tagger_outputs` gives them: a module, so that DDP can contain it."""

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        self.tagger = tagger
        self.needs: frozenset[str] = frozenset()  # what edges carry beside logits, in the current phase

    def forward(self, mel_BMF: Tensor) -> dict[str, Tensor]:
        return tagger_outputs(self.tagger, mel_BMF, needs=self.needs)


class TrainState:
    """One model in memory. `forward` is what trains: the tagger's outputs, within DDP if there are several workers.

    `projections`, by edge, are from the model's embedding to a teacher's, or from its sequence to weights of its steps;
    they train with the model and are in no average and no delivered model. Their gradients are averaged over workers in
    one call (`average_projections`), because DDP would wait for those of edges that are closed.
    """

    def __init__(
        self,
        model: Model,
        tagger: Tagger,
        *,
        total_steps: int,
        session: Session,
        group: Any,
        compiled: bool = False,
        projections: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.tagger = tagger.to(session.device).eval()
        if compiled:  # in place, so that state-dict keys stay; copies (averages, snapshots) are not compiled
            self.tagger.backbone.compile(dynamic=False)
        self.total_steps = total_steps
        self.own_step = 0  # optimizer steps of this model, skipped ones included
        self.skipped_steps = 0  # of these, for losses or gradients that were not finite
        self.grad_norm = torch.zeros(())  # of the last step, before clipping; on the device until it is logged
        self.last_lr = 0.0
        self.average = build_average(model.average, self.tagger)
        self._settings = model.optimizer
        self._group = group
        # a prefix, because an edge may be called like an attribute of the module
        named = {f"{PROJECTION}{key}": module for key, module in (projections or {}).items()}
        self.projections = nn.ModuleDict(named).to(session.device)
        kind = torch.optim.AdamW if model.optimizer.kind == "adamw" else torch.optim.Adam
        # Fused also on CPU, where it is faster too (`make bench`). It takes for granted, unchecked on CPU, that a
        # gradient has the memory layout of its parameter; those of autograd do.
        self.optimizer: torch.optim.Optimizer = kind(
            self._parameters(),
            lr=self.lr,
            betas=model.optimizer.betas,
            weight_decay=model.optimizer.weight_decay,
            fused=True,
        )
        # `ShardMeanStats` averages batch norm's buffers over all shards, so DDP must not broadcast them.
        self.training_forward = forward = TrainingForward(self.tagger)
        self.forward: nn.Module = (
            DistributedDataParallel(forward, process_group=group, broadcast_buffers=False) if group else forward
        )

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.tagger.parameters(), *self.projections.parameters()]

    def projection(self, edge: str) -> nn.Module:
        """From this model's embedding to that of the teacher, or from its sequence to scores, by the edge's key."""
        return self.projections[f"{PROJECTION}{edge}"]

    def average_projections(self) -> None:
        """Average the gradients of the projections over workers; a collective call where there are several."""
        for parameter in self.projections.parameters() if self._group else ():
            if parameter.grad is not None:  # on all workers or on none: their edges are open at the same time
                dist.all_reduce(parameter.grad, group=self._group)
                parameter.grad /= dist.get_world_size(self._group)

    def exchange_seconds(self) -> float | None:
        """How long averaging this model's gradients over the workers took, with waiting for the slowest worker.

        DDP's own measurement of the newest step that it measured: each of its first ten, then every hundredth. It
        overlaps with the backward. None where one worker trains, or nothing is measured yet. About 0.1 ms.
        """
        if not isinstance(self.forward, DistributedDataParallel):
            return None
        nanoseconds = self.forward._get_ddp_logging_data().get("backward_comm_time")
        return float(nanoseconds) / 1e9 if nanoseconds else None

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self._settings, self.own_step, self.total_steps)

    @property
    def evaluation_tagger(self) -> Tagger:
        """The weights that are validated and that teach as "ema": the moving average if there is one, else the last."""
        return cast(Tagger, self.average.evaluation_model(self.tagger))

    def clip_gradients(self) -> Tensor:
        """Clip the gradients to the norm `clip_norm` (0: no limit); returns the norm before clipping."""
        limit = self._settings.clip_norm or math.inf
        self.grad_norm = nn.utils.clip_grad_norm_(self._parameters(), limit)
        return self.grad_norm

    def step(self, *, skip: bool = False) -> None:
        """Take one optimizer step, update the average, clear the gradients.

        A skipped step changes no weights but counts, so that step budgets and learning-rate curves stay as planned.
        """
        self.last_lr = self.lr
        for group in self.optimizer.param_groups:
            group["lr"] = self.last_lr
        self.own_step += 1
        self.tagger.set_progress(self.own_step, self.total_steps)
        if skip:
            self.skipped_steps += 1
        else:
            self.optimizer.step()
            self.average.update(self.tagger)
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that `load` needs, by name: model, projections, optimizer state, average."""
        state = {f"model.{name}": tensor for name, tensor in self.tagger.state_dict().items()}
        state |= {f"projection.{name}": tensor for name, tensor in self.projections.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        return state | {f"average.{name}": tensor for name, tensor in self.average.tensors().items()}

    def scalars(self) -> dict[str, Any]:
        """The values that `load` needs besides tensors; JSON-able."""
        return {"own_step": self.own_step, "skipped": self.skipped_steps, "average": self.average.scalars()}

    def load(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Restore the state that `tensors` and `scalars` returned; the next steps are the same, bit for bit.

        Raises ValueError where they are not such a state of this model.
        """
        try:
            self._restore(tensors, scalars)
        except (KeyError, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(f"the checkpoint holds no training state of this model ({error!r})") from None

    def _restore(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "projection": {}, "optimizer": {}, "average": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        self.tagger.load_own(parts["model"], "checkpoint")
        self.projections.load_state_dict(parts["projection"])
        slots: dict[int, dict[str, Tensor]] = {}
        parameters = self._parameters()
        for name, tensor in parts["optimizer"].items():
            index, slot = name.split(".", 1)
            parameter = parameters[int(index)]
            if tensor.shape == parameter.shape:  # the same memory layout as its parameter, as the optimizer made it
                tensor = torch.empty_like(parameter).copy_(tensor)
            slots.setdefault(int(index), {})[slot] = tensor
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.average.load(parts["average"], scalars["average"])
        self.own_step, self.skipped_steps = scalars["own_step"], scalars["skipped"]
