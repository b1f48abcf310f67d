"""The models of a run with everything that moves with them, and the one place where roles change (`Team.enter`)."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workloads import roles
from workloads.averaging import build_average
from workloads.config.recipe import Model, Optimizer, Recipe
from workloads.edges import Frozen, Peer, TeacherSource
from workloads.models.tagger import Tagger
from workloads.runtime import checkpoint
from workloads.runtime.opener import HISTORY
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


class Member:
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
        # Batch norm's buffers are averaged over all shards by `BufferMean`, so DDP must leave them alone.
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


class Team:
    """The models that the present phase needs; the others wait on disk."""

    def __init__(
        self, recipe: Recipe, session: Session, phases: tuple[roles.Phase, ...], make_tagger: Callable[[str], Tagger]
    ) -> None:
        self.members: dict[str, Member] = {}
        self.snapshots: dict[str, Tagger] = {}
        self.taught = dict.fromkeys(recipe.models, 0)
        self._recipe, self._session, self._make_tagger = recipe, session, make_tagger
        self._totals = roles.own_steps(phases)
        self._parked: dict[str, dict[str, Any]] = {}  # name -> scalars; the tensors are in the folder below
        self._folder = session.work_dir / "parked"
        self._folder.mkdir(parents=True, exist_ok=True)
        # A group for each model: their collectives cannot interleave. Made once, in the same order on every worker.
        self._groups = {name: dist.new_group() if session.world_size > 1 else None for name in recipe.models}

    def enter(self, phase: roles.Phase, *, resumed: bool = False) -> dict[str, TeacherSource]:
        """Change roles: bring in whom the phase needs, park the rest, take snapshots; returns each edge's source."""
        for name in [name for name in self.members if name not in phase.needs]:
            self._park(name)
        for name in phase.needs:
            self.member(name)
        for name, member in self.members.items():
            member.tagger.train(name in phase.trains)
        if not resumed:
            teachers = {edge.teacher for edge in phase.edges if edge.source == "snapshot"}
            self.snapshots = {name: copy.deepcopy(self.members[name].tagger).eval() for name in sorted(teachers)}
        return self._sources(phase)

    def _sources(self, phase: roles.Phase) -> dict[str, TeacherSource]:
        shared: dict[tuple[str, str, str], TeacherSource] = {}  # two students of one teacher share its forward
        sources = {}
        for edge in phase.edges:
            key = (edge.teacher, edge.view, edge.source)
            if key not in shared:
                if edge.source == "live" and edge.teacher in phase.trains:
                    shared[key] = Peer(edge.teacher)
                else:
                    shared[key] = Frozen(self._standing(edge.teacher, edge.source), edge.view, self.autocast)
            sources[edge.key] = shared[key]
        return sources

    def _standing(self, name: str, source: str) -> Callable[[], Tagger]:
        if source == "snapshot":
            return lambda: self.snapshots[name]
        if source == "ema":
            return lambda: self.members[name].candidate
        return lambda: self.members[name].tagger

    def member(self, name: str) -> Member:
        """The model, built, or brought back from disk, if it is not in memory."""
        if name not in self.members:
            member = Member(
                self._recipe.models[name],
                self._make_tagger(name),
                total_steps=self._totals[name],
                session=self._session,
                group=self._groups[name],
                compiled=self._recipe.train.compile,
            )
            if name in self._parked:
                member.load(checkpoint.read_tensors(self._folder, name), self._parked.pop(name))
            self.members[name] = member
        return self.members[name]

    def dismiss(self, name: str) -> None:
        """Let a model go that the run is done with."""
        del self.members[name]

    def _park(self, name: str) -> None:
        member = self.members.pop(name)
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in member.tensors().items()}
        save_file(tensors, self._folder / f"{name}.safetensors")
        self._parked[name] = member.scalars()

    def autocast(self) -> torch.autocast:
        """bf16 around a model's forward where the recipe says so; losses stay in fp32."""
        return torch.autocast(self._session.device.type, torch.bfloat16, enabled=self._recipe.train.precision == "bf16")

    @contextlib.contextmanager
    def synchronised(self, names: tuple[str, ...], *, last: bool) -> Iterator[None]:
        """Gradients of these models cross workers with the step's last shard only."""
        with contextlib.ExitStack() as stack:
            for name in names:
                forward = self.members[name].forward
                if isinstance(forward, DistributedDataParallel) and not last:
                    stack.enter_context(forward.no_sync())
            yield

    def save(self, folder: Path, state: dict[str, Any], *, history: Path) -> Path:
        """Write the whole team as one checkpoint; `state` and the file of records are the loop's own."""
        tensors = {name: member.tensors() for name, member in self.members.items()}
        tensors |= {f"snapshot-{name}": tagger.state_dict() for name, tagger in self.snapshots.items()}
        state = state | {
            "taught": self.taught,
            "members": {name: member.scalars() for name, member in self.members.items()} | self._parked,
            "snapshots": sorted(self.snapshots),
        }
        parked = {f"{name}.safetensors": self._folder / f"{name}.safetensors" for name in self._parked}
        return checkpoint.write(folder, tensors=tensors, state=state, files={HISTORY: history, **parked})

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Take up a saved team: everyone waits on disk until a phase needs them."""
        self.taught = dict(state["taught"])
        self._parked = dict(state["members"])
        for name in self._parked:
            save_file(checkpoint.read_tensors(folder, name), self._folder / f"{name}.safetensors")
        for name in state["snapshots"]:
            self.snapshots[name] = self._make_tagger(name).to(self._session.device).eval()
            self.snapshots[name].load_state_dict(checkpoint.read_tensors(folder, f"snapshot-{name}"))
