"""Trains a few steps of a recipe on this machine and compares them with the predictions of `cost.py`.

Local, without Ray and without tracking, in a temporary folder; only the clip cache stays.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from orchestrator.planning.cost import Cost, step_flops
from workloads.config.recipe import Recipe
from workloads.data.batches import Batches
from workloads.data.shard import Shard
from workloads.distill.schedule import Phase
from workloads.models.size import Size, macs_of_forward
from workloads.run import Run, set_up
from workloads.runtime.checkpoint_store import LocalCheckpointStore
from workloads.runtime.event_log import EventLog
from workloads.runtime.opener import Opener
from workloads.runtime.scratch import scratch_folder
from workloads.runtime.session import LocalSession
from workloads.train import loop

TOLERANCE = 0.01  # largest error of a prediction, as a share of the measured number


@dataclass(frozen=True)
class Comparison:
    """A predicted number and the measured one."""

    what: str
    predicted: int
    measured: int

    @property
    def off(self) -> float:
        """The error of the prediction as a share of the measured number."""
        return abs(self.predicted - self.measured) / max(1, self.measured)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The results of the short run."""

    steps: int
    seconds_per_step: float  # of steps without validation, saving or a change of roles, if there were any
    tflops: float  # effective, in those steps: predicted FLOPs over measured seconds, data loading included
    files_bytes: int  # of the checkpoint's folder: tensors, headers, state and records
    compared: tuple[Comparison, ...]

    @property
    def wrong(self) -> tuple[Comparison, ...]:
        """The predictions whose error exceeds the tolerance."""
        return tuple(entry for entry in self.compared if entry.off > TOLERANCE)


class CountingBatches(Batches):
    """Batches that count the clips they have returned."""

    num_clips = 0

    def shard(
        self, step: int, index: int, *, with_clean_view: bool = False, device: torch.device | str = "cpu"
    ) -> Shard:
        shard = super().shard(step, index, with_clean_view=with_clean_view, device=device)
        self.num_clips += len(shard.clip_ids)
        return shard


@dataclass
class StepRecorder:
    """Records when each step ended, and on how many clips each model was trained.

    The training loop calls `should_stop` once after every step, in its own thread; `run` must be set before.
    """

    stop_after: int
    run: Run | None = None
    times: list[float] = field(default_factory=list)  # when training started, then the end of each step
    clips: dict[str, int] = field(default_factory=dict)
    _own_steps: dict[str, int] = field(default_factory=dict)
    _num_clips: int = 0

    def should_stop(self) -> bool:
        """Record the step that has just ended; true after `stop_after` steps."""
        assert self.run is not None
        assert isinstance(self.run.batches, CountingBatches)
        self.times.append(time.perf_counter())
        new = self.run.batches.num_clips - self._num_clips
        for name, state in self.run.pool.states.items():
            if state.own_step > self._own_steps.get(name, 0):
                self.clips[name] = self.clips.get(name, 0) + new
                self._own_steps[name] = state.own_step
        self._num_clips += new
        return self.run.step >= self.stop_after


@dataclass(frozen=True, kw_only=True)
class ShortRun:
    """The measurements of the short run; its folder is deleted afterwards."""

    phases: tuple[Phase, ...]
    times: list[float]
    clips: dict[str, int]
    params: dict[str, int]
    macs: dict[str, int]
    checkpoint_bytes: int
    files_bytes: int


def measure(recipe: Recipe, cost: Cost, sizes: dict[str, Size], *, files: Opener) -> Measured:
    """Train the first `cost.steps` steps, for which `cost` was predicted, and compare.

    Raises ValueError for the user's mistakes: data that cannot be used, a missing GPU.
    """
    if recipe.train.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device = 'cuda': this machine has no GPU that torch can use; set it to 'cpu'")
    with scratch_folder() as scratch:
        short_run = _train(recipe, cost.steps, scratch, files)
    steps = _undisturbed(recipe, short_run.phases, cost.steps)
    seconds = sum(short_run.times[step] - short_run.times[step - 1] for step in steps)
    flops = sum(step_flops(recipe, _phase_of(short_run.phases, step), sizes) for step in steps)
    return Measured(
        steps=cost.steps,
        seconds_per_step=seconds / len(steps),
        tflops=flops / seconds / 1e12,
        files_bytes=short_run.files_bytes,
        compared=tuple(_comparisons(cost, short_run)),
    )


def _train(recipe: Recipe, steps: int, folder: Path, files: Opener) -> ShortRun:
    recorder = StepRecorder(stop_after=steps)
    with EventLog(folder / "events.jsonl") as event_log:
        session = LocalSession(
            work_dir=folder / "scratch",
            event_log=event_log,
            store=LocalCheckpointStore(folder),
            device=recipe.train.device,
            should_stop=recorder.should_stop,
        )
        run = set_up(recipe, session, files=files)
        run.batches = CountingBatches(run.batches.clips, run.prepared.dataset, run.prepared.cache, recipe)
        recorder.run = run
        recorder.times.append(time.perf_counter())
        loop(run)
        newest = folder / "checkpoints" / session.checkpoints()[0]
        taggers = {name: run.pool.train_state(name).tagger.eval() for name in recipe.models}
        shard = run.batches.shard(0, 0, device=recipe.train.device)
        macs = {name: macs_of_forward(tagger, shard.mel(tagger.front_end)) for name, tagger in taggers.items()}
        run.history.close()
    return ShortRun(
        phases=run.phases,
        times=recorder.times,
        clips=recorder.clips,
        params={name: tagger.num_parameters for name, tagger in taggers.items()},
        macs=macs,
        checkpoint_bytes=tensor_bytes(newest),
        files_bytes=sum(path.stat().st_size for path in newest.iterdir()),
    )


def _comparisons(cost: Cost, short_run: ShortRun) -> Iterator[Comparison]:
    yield Comparison("checkpoint bytes", cost.checkpoint_bytes, short_run.checkpoint_bytes)
    for name, model in cost.models.items():
        yield Comparison(f"{name}: parameters", model.params, short_run.params[name])
        yield Comparison(f"{name}: multiply-adds a clip", model.macs, short_run.macs[name])
        yield Comparison(f"{name}: clips learned from", model.clips_seen, short_run.clips.get(name, 0))


def tensor_bytes(folder: Path) -> int:
    """Bytes of the tensors in a checkpoint's files, from their headers: eight bytes of length, then that much JSON."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        total += sum(end - begin for begin, end in spans)
    return total


def _phase_of(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase of a step, counted from 1."""
    return next(phase for phase in phases if phase.start < step <= phase.end)


def _undisturbed(recipe: Recipe, phases: tuple[Phase, ...], steps: int) -> list[int]:
    """The steps, counted from 1, whose times include nothing but training; all steps if there is none.

    The first step is a warm-up. The time of a validation is part of the step before it, that of saving and of a change
    of roles is part of the step after.
    """
    ends = {phase.end for phase in phases}
    validated = {step for step in range(1, steps + 1) if step % recipe.train.eval_every == 0} | ends
    saved = {step for step in range(1, steps + 1) if step % recipe.train.checkpoint_every == 0} | ends
    plain = [step for step in range(2, steps + 1) if step not in validated and step - 1 not in saved]
    return plain or list(range(1, steps + 1))
