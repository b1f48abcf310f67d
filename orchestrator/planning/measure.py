"""A few steps of a recipe, really trained on this machine, held against what `plan.py` says of them.

Local, without Ray and without tracking, in a folder that goes afterwards; only the clip cache stays.
"""

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from orchestrator.planning.cost import Cost, step_flops
from workloads.config.recipe import Recipe
from workloads.data.batches import Batches, Shard
from workloads.distill.schedule import Phase
from workloads.models.size import Size, macs_of_forward
from workloads.runtime.checkpoint_store import LocalCheckpointStore
from workloads.runtime.event_log import EventLog
from workloads.runtime.opener import Opener
from workloads.runtime.session import LocalSession
from workloads.train import Run, loop, set_up

TOLERANCE = 0.01  # share by which a prediction may be off


@dataclass(frozen=True)
class Compared:
    """A number that was predicted, and what it turned out to be."""

    what: str
    predicted: int
    measured: int

    @property
    def off(self) -> float:
        """By which share of the measured number the prediction misses it."""
        return abs(self.predicted - self.measured) / max(1, self.measured)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the short run showed."""

    steps: int
    seconds_per_step: float  # of steps without validation, saving or a change of roles, as far as there were any
    tflops: float  # effective, in those steps: predicted FLOPs over measured seconds, loading and all
    files_bytes: int  # of the checkpoint's folder: tensors, headers, state and records
    compared: tuple[Compared, ...]

    @property
    def wrong(self) -> tuple[Compared, ...]:
        """The predictions that missed by more than the tolerance."""
        return tuple(entry for entry in self.compared if entry.off > TOLERANCE)


class CountedBatches(Batches):
    """Batches that know how many clips they have handed out."""

    handed_out = 0

    def shard(self, step: int, index: int) -> Shard:
        shard = super().shard(step, index)
        self.handed_out += len(shard.clip_ids)
        return shard


@dataclass
class Watch:
    """Looks at a run after every step: when it ended, which models learned in it, from how many clips."""

    stop_after: int
    run: Run | None = None
    times: list[float] = field(default_factory=list)
    clips: dict[str, int] = field(default_factory=dict)
    _own: dict[str, int] = field(default_factory=dict)
    _handed_out: int = 0

    def should_stop(self) -> bool:
        """The session's question after each step."""
        assert self.run is not None
        assert isinstance(self.run.batches, CountedBatches)
        self.times.append(time.perf_counter())
        new = self.run.batches.handed_out - self._handed_out
        for name, state in self.run.pool.states.items():
            if state.own_step > self._own.get(name, 0):
                self.clips[name] = self.clips.get(name, 0) + new
                self._own[name] = state.own_step
        self._handed_out += new
        return self.run.step >= self.stop_after


def measure(recipe: Recipe, cost: Cost, sizes: dict[str, Size], *, files: Opener) -> Measured:
    """Train the first `cost.steps` steps, for which `cost` was planned, and compare.

    Raises ValueError for the user's mistakes: data that cannot be used, a GPU that is not there.
    """
    if recipe.train.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device = 'cuda': this machine has no GPU that torch can use; set it to 'cpu'")
    watch = Watch(stop_after=cost.steps)
    with tempfile.TemporaryDirectory(prefix="antiphon-plan-") as scratch:
        folder = Path(scratch)
        with EventLog(folder / "events.jsonl") as event_log:
            session = LocalSession(
                work_dir=folder / "scratch",
                event_log=event_log,
                store=LocalCheckpointStore(folder),
                device=recipe.train.device,
                should_stop=watch.should_stop,
            )
            run = set_up(recipe, session, files=files)
            run.batches = CountedBatches(run.batches.clips, run.prepared.dataset, run.prepared.cache, recipe)
            watch.run = run
            watch.times.append(time.perf_counter())
            loop(run)
            newest = folder / "checkpoints" / session.checkpoints()[0]
            taggers = {name: run.pool.train_state(name).tagger.eval() for name in recipe.models}
            params = {name: tagger.num_parameters for name, tagger in taggers.items()}
            shard = run.batches.shard(0, 0).to(recipe.train.device)
            macs = {name: macs_of_forward(tagger, shard.mel(tagger.front_end)) for name, tagger in taggers.items()}
            run.history.close()
        compared = [Compared("checkpoint bytes", cost.checkpoint_bytes, tensor_bytes(newest))]
        files_bytes = sum(path.stat().st_size for path in newest.iterdir())
    for name, model in cost.models.items():
        compared.append(Compared(f"{name}: parameters", model.params, params[name]))
        compared.append(Compared(f"{name}: multiply-adds a clip", model.macs, macs[name]))
        compared.append(Compared(f"{name}: clips learned from", model.clips_seen, watch.clips.get(name, 0)))
    steps = _undisturbed(recipe, run.phases, cost.steps)
    seconds = sum(watch.times[step] - watch.times[step - 1] for step in steps)
    flops = sum(step_flops(recipe, _phase_of(run.phases, step), sizes) for step in steps)
    return Measured(
        steps=cost.steps,
        seconds_per_step=seconds / len(steps),
        tflops=flops / seconds / 1e12,
        files_bytes=files_bytes,
        compared=tuple(compared),
    )


def tensor_bytes(folder: Path) -> int:
    """Bytes of the tensors in a checkpoint's files, by their headers: eight bytes of length, then that much JSON."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        total += sum(end - begin for begin, end in spans)
    return total


def _phase_of(phases: tuple[Phase, ...], step: int) -> Phase:
    """Where the `step`-th step belongs, counted from 1."""
    return next(phase for phase in phases if phase.start < step <= phase.end)


def _undisturbed(recipe: Recipe, phases: tuple[Phase, ...], steps: int) -> list[int]:
    """The steps, counted from 1, that nothing slowed down; all of them where there is none.

    The first one warms up. Validation counts to the step before it, saving and a change of roles to the one after.
    """
    ends = {phase.end for phase in phases}
    validated = {step for step in range(1, steps + 1) if step % recipe.train.eval_every == 0} | ends
    saved = {step for step in range(1, steps + 1) if step % recipe.train.checkpoint_every == 0} | ends
    plain = [step for step in range(2, steps + 1) if step not in validated and step - 1 not in saved]
    return plain or list(range(1, steps + 1))
