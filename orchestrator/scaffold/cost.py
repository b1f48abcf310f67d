"""How long a recipe takes on this machine and how much memory: the costs of `planning/`, at the rate of a few steps.

The steps are of embedded sounds as long as the clips, since decoding a data set may take longer than all else.
"""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from orchestrator.planning.cost import count_clips, model_sizes, plan_cost
from orchestrator.planning.measure import measure
from orchestrator.training.request import RunRequest, check_request
from workloads.config.data import Data
from workloads.config.recipe import Recipe
from workloads.data.decode import BrokenClip, load_sound
from workloads.distill.schedule import plan_phases
from workloads.runtime.opener import Opener
from workloads.runtime.scratch import scratch_folder

STEPS = 4  # the first one warms up
DECODED = 8  # sounds whose decoding is timed
EMBEDDED_CLIPS = 50  # the fewest that there can be


@dataclass(frozen=True)
class RunCost:
    """What a run of a recipe takes here."""

    steps: int  # of the whole schedule
    train_minutes: float
    decode_minutes: float  # once, into the cache
    memory_bytes: int  # of the process that trains, at its peak so far
    cache_bytes: int
    busy: bool  # with other work: the steps were timed on one thread, since several would wait for each other
    tflops: float  # the speed of these steps, in 1e12 floating-point operations per second

    @property
    def minutes(self) -> float:
        return self.train_minutes + self.decode_minutes


def run_cost(recipe: Recipe, files: Opener, *, root: str, paths: Sequence[str]) -> RunCost:
    """Train a few steps and decode a few of the sounds `paths` below `root`, and predict the run from that.

    Raises ValueError for whatever keeps the recipe from running: this is the first time that its data set is read.
    """
    phases = check_request(RunRequest(recipe, "antiphon init"))
    counted = count_clips(recipe, files, clips=None, tags=None)
    sizes = model_sizes(recipe, tags=counted.tags)
    cost = plan_cost(recipe, phases, counted, sizes)
    busy = psutil.getloadavg()[0] > (psutil.cpu_count() or 1)
    with scratch_folder() as scratch:
        tried = _with_embedded_sounds(recipe, scratch, threads=1 if busy else recipe.train.threads)
        counted_tried = count_clips(tried, files, clips=None, tags=None)
        # `sizes` differ by the outputs of the heads only, from those of the networks that are tried
        part = plan_cost(tried, plan_phases(tried), counted_tried, sizes, until=min(STEPS, cost.steps))
        measured = measure(tried, part, sizes, files=files)
    return RunCost(
        steps=cost.steps,
        train_minutes=60 * cost.hours(tflops=measured.tflops, devices=1),
        decode_minutes=_decode_minutes(root, paths, recipe.rate),
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        cache_bytes=cost.cache_bytes,
        busy=busy,
        tflops=measured.tflops,
    )


def cost_at_same_speed(recipe: Recipe, files: Opener, before: RunCost) -> RunCost:
    """What a run of a recipe with another number of steps takes, at the speed that was measured `before`.

    Not measured again: on a busy machine the next measurement may be twice as long, and a schedule that was shortened
    to so many minutes would seem to miss them.
    """
    phases = check_request(RunRequest(recipe, "antiphon init"))
    counted = count_clips(recipe, files, clips=None, tags=None)
    cost = plan_cost(recipe, phases, counted, model_sizes(recipe, tags=counted.tags))
    return replace(before, steps=cost.steps, train_minutes=60 * cost.hours(tflops=before.tflops, devices=1))


def _with_embedded_sounds(recipe: Recipe, scratch: Path, *, threads: int) -> Recipe:
    """The same networks, clips and batches on sounds that are computed."""
    data = Data(
        labels=recipe.data.labels,
        clip_seconds=recipe.data.clip_seconds,
        synthetic_clips=max(EMBEDDED_CLIPS, 3 * recipe.train.batch_size),
        val_share=0.25,  # of four clips of each tag in the training folds one
        cache=str(scratch / "clips"),
    )
    return replace(recipe, data=data, train=replace(recipe.train, threads=threads))


def _decode_minutes(root: str, paths: Sequence[str], rate: int) -> float:
    """Minutes to decode all of the sounds, from some that lie evenly among them."""
    chosen = paths[:: max(1, len(paths) // DECODED)][:DECODED]
    start = time.perf_counter()
    for path in chosen:
        with (Path(root) / path).open("rb") as file:
            try:
                load_sound(file, rate=rate)
            except BrokenClip:
                continue
    return (time.perf_counter() - start) / len(chosen) * len(paths) / 60
